"""Distillation to the start: the divergence and the distance by hand, 0 at the start, nothing
for what is not learned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.lm.architectures import make as build
from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Batch
from trainwright.finetune.rehearsal_free_distillation import RehearsalFreeDistillation
from trainwright.planning.synthetic import synthetic

KINDS = ("llama", "qwen2", "gpt2", "gemma2")
"""Gemma caps its logits: its head is not a plain one."""


def batch() -> Batch:
    made = synthetic(2, 12, 64, Context())
    made["targets"][:, -3:] = -100
    return made


def pair(kind: str) -> tuple[torch.nn.Module, Context]:
    """A model that has moved away from its reference."""
    model, reference = build(kind), build(kind).requires_grad_(False)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=draw))
    return model, Context(frozen={"reference": reference})


def outputs(model: torch.nn.Module, given: Batch) -> tuple[Tensor, Tensor]:
    out = model(input_ids=given["input_ids"], position_ids=given["position_ids"], output_hidden_states=True)
    return out.logits.softmax(-1), out.hidden_states[-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["prediction", "features"])
def test_the_formula_by_hand(how: str, kind: str) -> None:
    method, given = RehearsalFreeDistillation(how=how), batch()
    model, ctx = pair(kind)
    method.init(model, ctx)
    values = method.loss(model, given, {}, ctx)
    (p, h), (p_before, h_before) = outputs(model, given), outputs(ctx.frozen["reference"], given)
    if how == "prediction":
        expected = (p_before * (p_before / p).log()).sum(-1)
    else:
        expected = ((h - h_before) ** 2).sum(-1) / h.shape[-1]
    learned = given["targets"] != -100
    assert values.shape == (2, 12) and not values[~learned].any() and method.count(given) == learned.sum()
    assert (
        torch.allclose(values[learned], expected[learned], rtol=1e-4, atol=1e-6)
        and (values[learned] > 0).all()
    )
    values.sum().backward()
    assert any(q.grad is not None and q.grad.any() for q in model.parameters())
    assert all(q.grad is None for q in ctx.frozen["reference"].parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["prediction", "features"])
def test_it_is_zero_at_the_start(how: str, kind: str) -> None:
    """Exactly, and its gradient too: Adam would make whole steps of what rounding leaves."""
    model = build(kind)
    values = RehearsalFreeDistillation(how=how).loss(
        model, batch(), {}, Context(frozen={"reference": build(kind)})
    )
    assert not values.any()
    values.sum().backward()
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_beside_next_token_it_is_added_by_its_weight(tmp_path: Path) -> None:
    """The loss of a step with both is the one plus ``weight`` times the other."""
    def loss(*methods: object) -> float:
        run = tiny.stage(None, tmp_path, more=methods)  # type: ignore[arg-type]
        run.ctx.frozen["reference"] = tiny.model(seed=1)
        run.run(until=1)
        return run.row["loss"]

    plain, one, three = loss(), loss(RehearsalFreeDistillation()), loss(RehearsalFreeDistillation(weight=3.0))
    assert one > plain and three - plain == pytest.approx(3 * (one - plain), rel=1e-3)


def test_without_a_reference_it_says_what_to_write() -> None:
    with pytest.raises(UserError, match='reference = "NAME"'):
        RehearsalFreeDistillation().init(build("llama"), Context())
    with pytest.raises(UserError, match="32 tokens"):
        RehearsalFreeDistillation().init(
            build("llama"), Context(frozen={"reference": build("llama", vocab_size=32)})
        )
