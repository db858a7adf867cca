"""Fisher merging: the formula by hand, and the information against gradients taken row by row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.merge._data import Sample
from trainwright.merge.fisher import Fisher

FEW = Fisher(sample=Sample(rows=3, length=32))


def given(*information: torch.Tensor, floor: float = 0.0) -> Context:
    return Context(memory={"fisher": ([{"w": f} for f in information], floor)})


def test_by_hand() -> None:
    one, two = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 6.0, 7.0])
    ctx = given(torch.tensor([1.0, 3.0, 0.0]), torch.tensor([1.0, 1.0, 2.0]))
    assert torch.allclose(Fisher().combine("w", [one, two], None, ctx), torch.tensor([3.0, 3.0, 7.0]))
    made = Fisher(weights=(3.0, 1.0)).combine("w", [one, two], None, ctx)
    assert torch.allclose(made, torch.tensor([2.0, 2.4, 7.0]))


def test_where_nobody_is_sure_it_is_the_average() -> None:
    one, two = torch.tensor([1.0, 2.0]), torch.tensor([5.0, 6.0])
    ctx = given(torch.zeros(2), torch.zeros(2), floor=1e-12)
    assert torch.allclose(Fisher().combine("w", [one, two], None, ctx), (one + two) / 2)
    assert torch.allclose(Fisher().combine("other", [one, two], None, ctx), (one + two) / 2)


def test_the_information_is_the_mean_square_of_gradients_of_rows(tmp_path: Path) -> None:
    ctx, model = tiny.merging(tmp_path), tiny.model().eval()
    found = FEW.information(model, 0, ctx)
    wanted = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for number, batch in enumerate(FEW.sample.of(model, 0, ctx, batch=1)):
        drawn = FEW.answered(model, batch, ctx.rng(f"fisher/0/{number}", at=0))
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits
        loss = F.cross_entropy(logits[0], drawn["targets"][0], reduction="sum")
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        for n, g in zip(wanted, gradients, strict=True):
            wanted[n] += g.square() / 3
    for n, f in found.items():
        assert torch.allclose(f, wanted[n], rtol=1e-3, atol=1e-6), n
    assert any(f.any() for f in found.values())


def test_targets_are_the_models_own_where_there_were_any(tmp_path: Path) -> None:
    ctx, model = tiny.merging(tmp_path), tiny.model().eval()
    batch = next(iter(FEW.sample.of(model, 0, ctx)))
    batch["targets"][0, :5] = -100
    drawn = FEW.answered(model, batch, ctx.rng("a"))["targets"]
    assert (drawn[0, :5] == -100).all() and ((drawn >= 0) == (batch["targets"] >= 0)).all()
    assert not torch.equal(drawn, batch["targets"])


def test_each_model_sees_its_domain(tmp_path: Path) -> None:
    ctx, model = tiny.merging(tmp_path), tiny.model().eval()
    sample = Sample(rows=3, length=32, domains=("prose", "code"))
    for number, domain in enumerate(sample.domains):
        for batch in sample.of(model, number, ctx):
            seen = {batch["domains"][d] for d in batch["domain"].unique().tolist() if d >= 0}
            assert seen == {domain}
    with pytest.raises(UserError, match=r"sample\.domains has 2 names for 3 models"):
        sample.check(3, "fisher")
