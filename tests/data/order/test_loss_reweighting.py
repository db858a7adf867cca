"""Loss-based reweighting: the paper's shapes by hand, over the whole step, sample by sample, as constants."""
from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from trainwright.check import tiny
from trainwright.core.batches import cut
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make
from trainwright.data.order.loss_reweighting import LossReweighting

LOSS = torch.tensor([1.0, 1.5, 2.0, 2.5, 3.0], dtype=torch.float64)                # h = -1, -0.5, 0, 0.5, 1
SHAPES = {"linupper": [0, 0.5, 1, 1, 1], "quadratic": [0, 0.75, 1, 0.75, 0], "extremes": [1, 0.5, 0, 0.5, 1],
          "upper": [0, 0.25, 0.5, 0.75, 1]}


@pytest.mark.parametrize("mapping", SHAPES)
def test_the_shapes_by_hand(mapping: str) -> None:
    raw = [math.exp(f / 0.4) for f in SHAPES[mapping]]
    expected = [5 * r / sum(raw) for r in raw]
    method = LossReweighting(mapping=mapping)  # type: ignore[arg-type]
    assert method.weights(LOSS).tolist() == pytest.approx(expected)


def test_the_easy_half_is_pushed_down_and_nothing_above_it_is_pushed_up() -> None:
    weights = LossReweighting().weights(LOSS)
    assert weights[0] < weights[1] < weights[2] == weights[3] == weights[4]


def test_equal_losses_have_equal_weights() -> None:
    assert LossReweighting().weights(torch.full((3,), 2.0)).tolist() == [1.0, 1.0, 1.0]


BATCH = {"document": torch.tensor([[0, 0, 1, 1], [0, 0, 0, -1]]),
         "targets": torch.tensor([[5, 5, 5, -100], [5, 5, 5, -100]])}
VALUES = torch.tensor([[1.0, 3.0, 4.0, 0.0], [3.0, 0.0, 0.0, 0.0]])
"""A loss of zero is a loss where there is a target."""


def test_rows_are_the_samples() -> None:
    """Of means 8/3 and 1, padding and what is not learned left out."""
    weights = LossReweighting(burn_in=0.0).weigh(VALUES, BATCH, {}, Context(steps=9))
    a, b = LossReweighting().weights(torch.tensor([8 / 3, 1.0], dtype=torch.float64)).float().tolist()
    assert weights.tolist() == [[a, a, a, 1.0], [b, b, b, 1.0]] and b < a


def test_documents_are_the_samples_where_that_is_asked() -> None:
    """Three documents in two rows, of means 2, 4 and 1."""
    weights = LossReweighting(burn_in=0.0, unit="document").weigh(VALUES, BATCH, {}, Context(steps=9))
    a, b, c = LossReweighting().weights(torch.tensor([2.0, 4.0, 1.0], dtype=torch.float64)).float().tolist()
    assert weights.tolist() == [[a, a, b, 1.0], [c, c, c, 1.0]] and c < a < b


def test_one_number_a_row_makes_the_row_the_sample() -> None:
    weights = LossReweighting(burn_in=0.0).weigh(LOSS, {}, {}, Context(steps=9))
    assert torch.equal(weights, LossReweighting().weights(LOSS))


def test_before_the_end_of_the_burn_in_all_count_alike() -> None:
    method = LossReweighting(burn_in=0.25)
    at = [method.weigh(LOSS, {}, {}, Context(steps=8, step=step)) for step in (1, 2)]
    assert torch.equal(at[0], torch.ones(5)) and not torch.equal(at[1], torch.ones(5))


@pytest.mark.parametrize("unit", ["row", "document"])
def test_the_gradient_is_that_of_constant_weights(unit: Literal["row", "document"], tmp_path: Path) -> None:
    """By hand over the whole step, however the step is cut; the authors' form: M sum w_i (n_i / N) l_i."""
    run = tiny.stage(LossReweighting(burn_in=0.0, unit=unit), tmp_path)
    batch = run.pull()
    objective = next(m for k, m in run.named_methods if k == "next_token.1")
    values: Tensor = objective.loss(run.model, batch, {}, run.ctx)  # type: ignore[attr-defined]
    document = batch["document"] if unit == "document" else torch.zeros_like(batch["document"])
    samples = [(document == d) & (torch.arange(len(values))[:, None] == r) & (batch["targets"] != -100)
               for r in range(len(values)) for d in range(int(document[r].max()) + 1)]
    samples = [one for one in samples if one.any()]
    means = torch.stack([values[one].mean() for one in samples])
    sizes = torch.tensor([float(one.sum()) for one in samples])
    weights = LossReweighting().weights(means.detach())
    (weights * sizes / sizes.sum() * means).sum().backward()
    expected = {n: p.grad.clone() for n, p in run.params.items() if p.grad is not None}
    for parts in (1, 4):
        grads = run.gradients(cut(batch, parts))
        assert all(torch.allclose(g, expected[n], atol=1e-6) for n, g in grads.items())


def test_what_it_cannot_weigh_is_said() -> None:
    with pytest.raises(UserError, match="numbers of shape"):
        LossReweighting(burn_in=0.0).weigh(torch.ones(2, 3), {}, {}, Context(steps=9))
    with pytest.raises(UserError, match="temperature"):
        make(LossReweighting, {"temperature": 0.0}, "here")
    with pytest.raises(UserError, match="do not fit"):
        LossReweighting(burn_in=20).init(nn.Module(), Context(steps=9))
