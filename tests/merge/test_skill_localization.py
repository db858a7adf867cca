"""Skill localization: the mask of movement over a whole model, and scores that follow the mask's gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call

from tests.merge.checkpoints import context, flat, merge, tuned
from trainwright import families
from trainwright.check import tiny
from trainwright.core.errors import UserError
from trainwright.core.method import Tensors
from trainwright.lm.losses import token_losses
from trainwright.merge._data import Sample
from trainwright.merge.skill_localization import SHIFT, SkillLocalization, _soft

FEW = Sample(rows=4, length=32)


def test_the_mask_of_movement_is_over_the_whole_model(tmp_path: Path) -> None:
    (model,), base = tuned(1)
    made = merge(SkillLocalization(density=0.05, only=("*",)), context(tmp_path, [model], base))
    moved = (flat(model) - flat(base)).abs()
    kept = moved >= moved.sort(descending=True).values[int(0.05 * len(moved)) - 1]
    assert torch.allclose(flat(made), torch.where(kept, flat(model), flat(base)), atol=1e-6)
    assert torch.equal(flat(made)[~kept], flat(base)[~kept])


def test_what_may_not_be_grafted_is_the_bases(tmp_path: Path) -> None:
    (model,), base = tuned(1)
    made = merge(SkillLocalization(density=1.0), context(tmp_path, [model], base))
    for name in made:
        wanted = (model if ".attn." in name or ".mlp." in name else base)[name]
        assert torch.allclose(made[name], wanted, atol=1e-6), name


def test_grafts_of_several_models_add_up(tmp_path: Path) -> None:
    models, base = tuned(2)
    method = SkillLocalization(density=0.2, only=("*",))
    alone = [flat(merge(method, context(tmp_path / str(i), [m], base))) for i, m in enumerate(models)]
    made = flat(merge(method, context(tmp_path / "both", models, base)))
    assert torch.allclose(made, alone[0] + alone[1] - flat(base), atol=1e-6)


def grafting() -> tuple[nn.Module, Tensors, Tensors, Tensors, Tensors]:
    """A model, where its weights start, how they moved, the signs of a mask, and scores."""
    draw = torch.Generator().manual_seed(0)
    model = tiny.model().eval()
    start = {n: p.detach().clone() for n, p in model.named_parameters() if "mlp" in n}
    moves = {n: 0.1 * torch.randn(p.shape, generator=draw) for n, p in start.items()}
    signs = {n: 1 - 2 * (torch.rand(p.shape, generator=draw) < 0.3).float() for n, p in start.items()}
    return model, start, moves, signs, {n: torch.rand(p.shape, generator=draw) for n, p in start.items()}


def test_a_step_is_gradient_descent_on_the_scores(tmp_path: Path) -> None:
    ctx = tiny.merging(tmp_path)
    model, start, moves, signs, scores = grafting()
    asked = {n: s.clone().requires_grad_() for n, s in scores.items()}
    weights = {n: start[n] + _soft(signs[n], asked[n]) * moves[n] for n in start}

    total, tokens = torch.zeros(()), 0
    for batch in FEW.of(model, 0, ctx):
        logits = functional_call(model, weights, (), {"input_ids": batch["input_ids"],
                                                      "position_ids": batch["position_ids"]}).logits
        total = total + nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["targets"].flatten(), reduction="sum"
        )
        tokens += int((batch["targets"] >= 0).sum())
    wanted = torch.autograd.grad(total / tokens, list(asked.values()))
    rows = [(b, 1 / tokens) for b in FEW.of(model, 0, ctx)]
    before = {n: s.clone() for n, s in scores.items()}
    SkillLocalization(sample=FEW, lr=1e4).step(model, start, moves, signs, scores, rows, ctx)
    for (n, s), g in zip(scores.items(), wanted, strict=True):
        assert torch.allclose(before[n] - s, 1e4 * g, rtol=1e-2, atol=1e-6), n
    assert sum(float(g.abs().sum()) for g in wanted) > 0


def test_the_mask_that_is_grafted_is_the_best_rounded_one(tmp_path: Path) -> None:
    ctx = tiny.merging(tmp_path)
    ctx.inputs["models"] = ctx.inputs["models"][:1]
    method = SkillLocalization(sample=FEW, density=0.3, passes=3, only=("*mlp*",), lr=1e9)
    method.prepare(ctx)
    shown = [float(line.rpartition(" ")[2]) for line in ctx.texts["rounded masks of model 1"].splitlines()]
    assert len(shown) == 4 and min(shown[1:]) < shown[0]               # training has found a better mask
    model = tiny.model().eval()
    folders = [ctx.inputs[role][0] for role in ("base", "models")]
    one, two = (dict(families.load(f, "here").named_parameters()) for f in folders)
    (mask,) = ctx.memory[method.name]
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.copy_(method.combine(n, [two[n]], one[n], ctx))
        losses = [token_losses(model, b, ctx).sum() for b in FEW.of(model, 0, ctx)]
        tokens = sum(int((b["targets"] >= 0).sum()) for b in FEW.of(model, 0, ctx))
    assert float(sum(losses)) / tokens == pytest.approx(min(shown), abs=1e-3) and set(mask) < set(one)


def test_scores_begin_within_a_ten_thousandth_of_the_mask() -> None:
    signs = torch.tensor([1.0, -1.0])
    soft = _soft(signs, torch.ones(2))
    assert torch.allclose(soft, torch.tensor([0.0, 1.0]), atol=1.5e-4) and SHIFT == 10


def test_mistakes(tmp_path: Path) -> None:
    models, base = tuned(2)
    with pytest.raises(UserError, match=r"sample\.domains has 1 names for 2 models"):
        merge(SkillLocalization(sample=Sample(domains=("a",))), context(tmp_path / "two", models, base))
    with pytest.raises(UserError, match=r"only = \['none'\] names no tensor"):
        merge(SkillLocalization(only=("none",)), context(tmp_path / "none", models[:1], base))
