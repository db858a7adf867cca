"""HPT: one estimator gives the gradients of SFT, PPO and GRPO, and a gate by how many answers are right."""
from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.align.pairs import moved
from tests.align.test_grpo import sampled
from tests.align.test_rollout import SMALL, context, steps
from trainwright.align.grpo import Grpo
from trainwright.align.hpt import Hpt
from trainwright.align.rollout import Rollout
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch, Objective
from trainwright.data.order.examples import Examples
from trainwright.finetune.supervised import Supervised
from trainwright.lm.logprobs import token_logprobs


def gradient(method: Objective, batch: Batch) -> list[Tensor]:
    model = moved()
    values = method.loss(model, batch, {}, context())
    return list(torch.autograd.grad(values.sum() / method.count(batch), list(model.parameters())))


def far() -> Batch:
    """A sampled batch whose model has moved, so that clips act."""
    batch = sampled()
    learned = batch["targets"] != UNTRAINED
    batch["logp"] += learned * 0.3 * torch.randn(learned.shape, generator=torch.Generator().manual_seed(3))
    return batch


def same(one: list[Tensor], two: list[Tensor]) -> None:
    assert max(float(t.abs().max()) for t in one) > 1e-3
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("divide", "ratio"), [("token", "token"), ("answer", "token"),
                                               ("answer", "sequence")])
def test_with_these_parts_it_is_grpo(divide: Any, ratio: Any) -> None:
    mine = Hpt(stable="clip", advantage="group", likelihood=ratio, divide=divide, entropy=0.0)
    same(gradient(mine, far()), gradient(Grpo(divide=divide, ratio=ratio), far()))


def test_with_these_parts_it_is_ppo_with_a_clip() -> None:
    """The advantage is what is given: here the reward."""
    batch, model = far(), moved()
    learned = batch["targets"] != UNTRAINED
    ratio = (token_logprobs(model, batch).logp - batch["logp"]).exp()
    better = batch["reward"][:, None] - 0.4
    ppo = -torch.minimum(ratio * better, ratio.clamp(0.8, 1.2) * better)[learned].mean()
    right = list(torch.autograd.grad(ppo, list(model.parameters())))
    mine = Hpt(stable="clip", advantage="reward", divide="token", entropy=0.0)
    same(gradient(mine, batch | {"reward": batch["reward"] - 0.4}), right)


def test_with_these_parts_it_is_supervised_fine_tuning() -> None:
    data, ctx = Examples(length=32, domains=("chat",)), context()
    assert ctx.policy is not None
    examples = data.next(lambda: {}, data.init(ctx.policy, ctx), ctx)
    same(gradient(Hpt(divide="token"), examples), gradient(Supervised(), examples))
    batch = far()                                            # on answers: all of them are taken
    mine = Hpt(denominator="model", advantage="one", divide="token", entropy=0.0)
    same(gradient(mine, batch), gradient(Supervised(), batch))


def gated(method: Hpt, batch: Batch) -> tuple[Batch, Context]:
    ctx = context()
    return method.next(lambda: batch, {}, ctx), ctx


def test_the_gate_counts_right_answers_and_leaves_one_demonstration() -> None:
    """The first prompt has two right answers (one of its four has no grade), the second one."""
    plain = steps(Rollout(**SMALL), context(), 1)[0]
    plain["reward"] = torch.tensor([1.0, 1, 1, 0, 0, 0, 1, 0.5])
    plain["group_rewards"] = plain["reward"].view(-1, 4).repeat_interleave(4, 0)
    plain["group_graded"] = torch.ones(8, 4, dtype=torch.int64)
    plain["group_graded"][:4, 1] = 0
    targets = plain["targets"].clone()
    shares = {}
    for gamma in (-1, 0, 1, 2):
        batch, ctx = gated(Hpt(gamma=gamma), plain)
        shares[gamma] = float(ctx.notes["hpt/demonstrations"][0][0])
        learned = (batch["targets"] != UNTRAINED).any(1).tolist()
        first, second = ([True, False, False, False] if gated_ else [True] * 4
                         for gated_ in (gamma >= 2, gamma >= 1))
        assert learned == first + second and batch["demonstration"].sum() == (gamma >= 2) + (gamma >= 1)
    assert shares == {-1: 0.0, 0: 0.0, 1: 0.5, 2: 1.0} and torch.equal(plain["targets"], targets)


def test_a_demonstration_is_the_answer_of_its_document() -> None:
    plain = steps(Rollout(**SMALL), context(), 1)[0]
    plain["group_rewards"] = torch.zeros(8, 4)
    batch, ctx = gated(Hpt(), plain)
    start = int((plain["targets"][4] != UNTRAINED).int().argmax()) + 1
    assert torch.equal(batch["input_ids"][4, :start], plain["input_ids"][4, :start])
    said = ctx.tokenizer.decode(batch["targets"][4][batch["targets"][4] != UNTRAINED])
    assert "<|im_end|>" in said and len(said.split()) >= 1
    assert not torch.equal(batch["targets"][4], plain["targets"][4])
    assert not batch["logp"][4].any() and Hpt().count(batch) == 2


def test_each_prompt_counts_once_and_weights_by_hand() -> None:
    batch = sampled() | {"demonstration": torch.tensor([0, 0, 0, 0, 1, 0, 0, 0])}
    batch["targets"][5:], batch["logp"][5:] = UNTRAINED, 0
    method, model = Hpt(entropy=0.01, demonstrations=0.3), moved()
    assert method.count(batch) == pytest.approx(2.0)
    values = method.loss(model, batch, {}, context())
    found = token_logprobs(model, batch)
    learned, better = batch["targets"] != UNTRAINED, batch["reward"] - 2 / 3
    for row in (0, 2, 3):
        ratio = (found.logp[row] - batch["logp"][row]).exp()
        each = (-ratio * better[row] * found.logp[row] - 0.01 * found.entropy[row])[learned[row]]
        torch.testing.assert_close(values[row], each.sum() / batch["new_tokens"] / 3)
    torch.testing.assert_close(values[4], -0.3 * found.logp[4][learned[4]].mean())
    assert not values[[1, 5, 6, 7]].any()


def test_what_it_refuses() -> None:
    with pytest.raises(UserError, match=r"the batch has no group_rewards: take \{ use = \"rollout\" \}"):
        gated(Hpt(), {"input_ids": torch.zeros(2, 3)})
    plain = steps(Rollout(**SMALL), context(), 1)[0] | {"selected": ("prose",)}
    plain["asked"] = torch.zeros_like(plain["asked"])
    with pytest.raises(UserError, match="none of its own to show"):
        gated(Hpt(gamma=4), plain)
