"""Guide: hinted tokens have a loss of their own by hand, and no clip takes their gradient."""
from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.align.test_grpo import sampled
from tests.align.test_rollout import context
from trainwright.align.grpo import Grpo
from trainwright.align.guide_rlvr import GuideRlvr, level
from trainwright.check import tiny
from trainwright.core.batches import cut
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch


def hinted() -> Batch:
    """Answers of two groups, those of the second drawn with a hint: much likelier then than now."""
    batch = sampled() | {"hinted": torch.tensor([0] * 4 + [1] * 4)}
    batch["logp"][4:] += 2.0 * (batch["targets"][4:] != UNTRAINED)
    return batch


def test_the_loss_of_hinted_tokens_by_hand() -> None:
    q = torch.tensor([[0.5, 0.1, 0.2, 9.0]])
    learned = torch.tensor([[True, True, True, False]])
    g = 0.2 + 0.8 * (0.5 - 0.2)                              # of three, it lies between the upper two
    assert float(level(q, learned)) == pytest.approx(g)
    assert float(level(q / 1e6, learned)) == pytest.approx(1e-4)
    moved = q.log().requires_grad_()
    batch = {"hinted": torch.tensor([1]), "reward": torch.tensor([1.0]),
             "group_rewards": torch.tensor([[1.0, 0.0]]), "group_graded": torch.ones(1, 2)}
    values = GuideRlvr(scale="none").surrogate(torch.zeros(1, 4), moved, batch, learned)
    torch.testing.assert_close(values[:, :3], (-0.5 * q / (q + g))[:, :3])
    slope = torch.autograd.grad(values[:, :3].sum(), moved)[0][:, :3]
    torch.testing.assert_close(slope, (-0.5 * q * g / (q + g).square())[:, :3])


def test_without_a_hint_it_is_grpo_and_with_one_no_clip_acts() -> None:
    batch, ctx = hinted(), context()
    free: dict[str, Any] = {"hinted": torch.zeros(8, dtype=torch.int64)}
    values = GuideRlvr().loss(tiny.model(), batch | free, {}, ctx)
    torch.testing.assert_close(values, Grpo().loss(tiny.model(), batch, {}, context()))
    def slopes(method: Grpo) -> float:
        model = tiny.model()
        rows = method.loss(model, batch, {}, context())[4:]
        worse = batch["reward"][4:] < batch["group_rewards"][4:].mean(1)
        grads = torch.autograd.grad(rows[worse].sum(), list(model.parameters()))
        return max(float(g.abs().max()) for g in grads)
    assert slopes(Grpo()) == 0 and slopes(GuideRlvr()) > 1e-4


def test_the_mismatch_is_of_answers_without_a_hint() -> None:
    ctx = context()
    GuideRlvr().loss(tiny.model(), hinted(), {}, ctx)
    told = {name: float(v[0][0]) for name, v in ctx.notes.items()}
    assert told["mismatch/largest"] < 1e-4 and told["ratio"] == pytest.approx(1.0, abs=1e-4)
    assert told["guide/ratio"] == pytest.approx(torch.tensor(-2.0).exp().item(), rel=1e-3)


def test_how_a_step_is_cut_changes_nothing() -> None:
    batch, model = hinted(), tiny.model()
    whole = GuideRlvr().loss(model, batch, {}, context())
    parts = [GuideRlvr().loss(model, one, {}, context()) for one in cut(batch, 4)]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-6, rtol=1e-5)
    with pytest.raises(UserError, match="some answers were drawn with a hint that is not in the batch"):
        Grpo().count(batch)
    with pytest.raises(UserError, match=r"the batch has no hinted: take \{ use = \"hinted_rollout\" \}"):
        GuideRlvr().count(sampled())
