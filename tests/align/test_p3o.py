"""P3O: constants of a prompt drop out, the pairwise gradient is the policy gradient, and clips stop it."""
from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.align.pairs import moved
from tests.align.test_grpo import sampled
from tests.align.test_rollout import context
from trainwright.align.p3o import P3o
from trainwright.check import tiny
from trainwright.core.method import UNTRAINED, Batch


def gradient(method: P3o, batch: Batch) -> list[Tensor]:
    model, ctx = moved(), context()
    values = method.loss(model, method.represent(model, batch, {}, ctx), {}, ctx)
    return [values.detach().sum(), *torch.autograd.grad(values.sum(), list(model.parameters()))]


@pytest.mark.parametrize("clip", ["joint", "separate", "none"])
def test_a_constant_of_a_prompt_changes_nothing_and_the_size_of_a_difference_does(clip: Any) -> None:
    batch, method = sampled(), P3o(clip=clip, beta=0.1)
    per_prompt = torch.tensor([2.0, -3.0]).repeat_interleave(4)
    one, two, three = (gradient(method, batch | {"reward": r}) for r in
                       (batch["reward"], batch["reward"] + per_prompt, 2 * batch["reward"]))
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    assert max(float((a - b).abs().max()) for a, b in zip(one, three, strict=True)) > 1e-3


def expected(method: P3o, scores: Tensor, old: Tensor, reward: Tensor) -> Tensor:
    """The gradient of the expected loss over all pairs of single-token answers that ``old`` draws."""
    scores = scores.clone().requires_grad_()
    apart = scores.log_softmax(0) - old
    values, _ = method.pair_loss(apart[:, None], apart, reward[:, None] - reward)
    weights = old.exp()[:, None] * old.exp()
    return torch.autograd.grad((weights * values).sum(), scores)[0]


def test_the_pairwise_gradient_is_the_policy_gradient() -> None:
    g = torch.Generator().manual_seed(0)
    scores, other, reward = (torch.randn(5, generator=g, dtype=torch.float64) for _ in range(3))
    there = scores.clone().requires_grad_()
    right = torch.autograd.grad(-(there.softmax(0) * reward).sum(), there)[0]
    for clip in ("none", "separate", "joint"):
        on_policy = expected(P3o(clip=clip), scores, scores.log_softmax(0), reward)  # type: ignore[arg-type]
        torch.testing.assert_close(on_policy, right)
    torch.testing.assert_close(expected(P3o(clip="none"), scores, other.log_softmax(0), reward), right)


def test_what_the_clips_stop() -> None:
    """A first answer that is 1.5 times as likely as it was, a second one that is as it was."""
    def slopes(clip: Any, better: float) -> list[float]:
        first, second = torch.tensor([1.5]).log().requires_grad_(), torch.zeros(1, requires_grad=True)
        values, _ = P3o(clip=clip, epsilon=0.2).pair_loss(first, second, torch.tensor([better]))
        return [round(float(t), 5) for t in torch.autograd.grad(values.sum(), (first, second))]
    assert slopes("none", 2.0) == [-1.5, 1.5] and slopes("none", -2.0) == [1.5, -1.5]
    assert slopes("separate", 2.0) == [0.0, 1.0] and slopes("separate", -2.0) == [1.5, -1.0]
    assert slopes("joint", 2.0) == [0.0, 0.0] and slopes("joint", -2.0) == [1.2, -1.2]


@pytest.mark.slow
def test_only_graded_answers_of_one_prompt_are_compared() -> None:
    batch, method = sampled(), P3o(beta=0.0, clip="none")
    assert method.count(batch) == 3 + 6                       # pairs of three and of four graded answers
    batch["logp"] = batch["logp"] + 0.1 * (batch["targets"] != UNTRAINED)
    model, ctx = tiny.model(), context()
    values = method.loss(model, rows := method.represent(model, batch, {}, ctx), {}, ctx)
    assert values[1] == 0 and values.shape == (8,)
    m, r = rows["moved"].tolist(), batch["reward"].tolist()
    pairs = [(i, j) for i in range(8) for j in range(i + 1, 8) if i // 4 == j // 4 and 1 not in (i, j)]
    by_hand = sum(-0.5 * torch.tensor(m[i] + m[j]).exp().item() * (r[i] - r[j]) * (m[i] - m[j])
                  for i, j in pairs)
    assert len(pairs) == 9 and float(values.detach().sum()) == pytest.approx(by_hand, rel=1e-4)


def test_the_divergence_is_part_of_the_reward() -> None:
    batch, ctx, model = sampled(), context(), tiny.model()
    batch["logp"] = batch["logp"] + 0.2 * (batch["targets"] != UNTRAINED)
    rows = P3o(beta=0.5).represent(model, batch, {}, ctx)    # the reference is the model that has sampled
    tokens = (batch["targets"] != UNTRAINED).sum(1)
    torch.testing.assert_close(rows["reward"], batch["reward"] - 0.5 * 0.2 * tokens, atol=1e-4, rtol=1e-4)
    assert not rows["reward"].requires_grad and rows["moved"].requires_grad
