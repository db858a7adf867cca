"""Rollouts: what is kept is what was sampled, each answer has a draw of its own, and missing grades are no
zeros."""
from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from trainwright.align._rewards import rewards
from trainwright.align.reward_head import RewardHead
from trainwright.align.rollout import Answer, Rollout
from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch
from trainwright.lm.asking import Asked
from trainwright.lm.generation import Prompt, Sampled, sampled
from trainwright.lm.logprobs import token_logprobs

SMALL: dict[str, Any] = Rollout.example | {"domains": ("chat",)}


def context(rows: int = 8) -> Context:
    ctx = tiny.context(tiny.place())
    ctx.batch_rows, ctx.policy = rows, tiny.model()
    return ctx


def steps(method: Rollout, ctx: Context, many: int) -> list[Batch]:
    assert ctx.policy is not None
    state, out = method.init(ctx.policy, ctx), []
    for step in range(many):
        ctx.step = step
        out.append(method.next(lambda: {}, state, ctx))
    return out


def answers(batch: Batch) -> list[tuple[int, ...]]:
    return [tuple(row[row != UNTRAINED].tolist()) for row in batch["targets"]]


def test_the_log_probabilities_are_those_of_the_model_that_sampled() -> None:
    ctx = context(16)
    batch = steps(Rollout(**SMALL | {"temperature": 0.7}), ctx, 1)[0]
    assert ctx.policy is not None
    logp = token_logprobs(ctx.policy, batch, 0.7).logp
    torch.testing.assert_close(logp, batch["logp"], atol=1e-5, rtol=1e-5)
    assert (batch["logp"] < 0).sum() == (batch["targets"] != UNTRAINED).sum() > 16


def test_an_answer_depends_on_its_own_seed_and_not_on_the_rows_beside_it() -> None:
    one, two = (steps(Rollout(**SMALL | {"sample_size": n}), context(16), 1)[0] for n in (16, 3))
    assert answers(one) == answers(two)
    assert len(set(answers(one))) > 8
    ctx = context(16)
    row = one["input_ids"][0].tolist()
    start = int((one["targets"][0] != UNTRAINED).int().argmax()) + 1
    seeds = [ctx.rng(f"rollout/{p}/{k}", at=0).initial_seed() for p in range(4) for k in range(4)]
    said = [sampled(ctx.policy, ctx.tokenizer, [Prompt(row[:start], 4, seed, 1.0)], ctx)[0].ids
            for seed in seeds]
    assert list(answers(one)[0]) in said


def test_epochs_go_over_one_rollout_in_whole_groups_and_other_orders() -> None:
    ctx = context(8)
    found = steps(Rollout(**SMALL), ctx, 5)
    first, again = ([b for part in (found[i], found[i + 1]) for b in answers(part)] for i in (0, 2))
    assert sorted(first) == sorted(again) and answers(found[0]) != answers(found[4])
    assert [b["fresh"] for b in found] == [True, False, False, False, True]
    for batch in found:
        assert [batch["domains"][i] for i in batch["domain"][:, 0]] == ["chat"] * 8
        for group in range(2):
            own = batch["group_rewards"][4 * group:4 * group + 4]
            assert (own == own[0]).all()
            assert own[0].tolist() == batch["reward"][4 * group:4 * group + 4].tolist()


def test_what_has_no_grade_is_no_zero(tmp_path: Path) -> None:
    (tmp_path / "picky.py").write_text(
        "from trainwright.core.method import Task\n\n\nclass Picky(Task):\n"
        "    def grade(self, prompt, answer):\n"
        "        if len(answer) % 2:\n            raise RuntimeError('no idea')\n"
        "        return 1.0 if len(answer) % 4 else 3.0\n")
    ctx = context(16)
    ctx.root = tmp_path
    batch = steps(Rollout(**SMALL | {"task": {"use": "./picky.py"}}), ctx, 1)[0]
    ungraded = (batch["targets"] == UNTRAINED).all(1)
    assert 0 < int(ungraded.sum()) < 16 and set(batch["reward"][~ungraded].tolist()) <= {1.0, 3.0}
    assert batch["group_graded"].sum() == 4 * int((~ungraded).sum())
    told = {name: float(v[0][0]) for name, v in ctx.notes.items()}
    assert told["rollout/ungraded"] == ungraded.sum()
    assert told["rollout/reward"] == pytest.approx(float(batch["reward"][~ungraded].mean()))
    lost = Rollout(**SMALL | {"task": {"use": "sums"}})
    with pytest.raises(UserError, match="none of the 16 answers has a grade: sums gives none for"):
        steps(lost, context(16), 1)


def test_rows_and_sums_of_a_group_by_hand() -> None:
    method = Rollout(**SMALL | {"group": 2, "prompts": 1, "length": 6})
    given = [Answer(Sampled([7, 8], [-1.0, -2.0]), 0.5, ""), Answer(Sampled([9], [-3.0]), math.nan, "late")]
    held = method._rows([Asked("a?", [4, 5, 6])], given)
    batch = method._batch(held, torch.tensor([1, 0]), True)
    assert batch["input_ids"].tolist() == [[4, 5, 6, 9, 0, 0], [4, 5, 6, 7, 8, 0]]
    assert batch["targets"].tolist() == [[-100] * 6, [-100, -100, 7, 8, -100, -100]]
    assert batch["logp"][1].tolist() == [0, 0, -1, -2, 0, 0]
    assert batch["group"].tolist() == [0, 0] and batch["member"].tolist() == [1, 0]
    assert batch["group_tokens"].tolist() == [2, 2] and batch["group_graded"].tolist() == [[1, 0]] * 2


def test_what_it_refuses() -> None:
    from trainwright.core import registry
    ctx = context()
    ctx.decode = [registry.create({"use": "nucleus", "p": 0.9}, Path(), "")]  # type: ignore[list-item]
    model = ctx.policy
    assert model is not None
    with pytest.raises(UserError, match="nucleus changes what is sampled"):
        Rollout(**SMALL).init(model, ctx)
    with pytest.raises(UserError, match="nothing grades the answers"):
        Rollout(**SMALL | {"task": {}}).init(model, context())
    with pytest.raises(UserError, match="samples grades no answers"):
        Rollout(**SMALL | {"task": {"use": "samples", "prompts": ["a"]}}).init(model, context())
    with pytest.raises(UserError, match="whole groups of 3"):
        steps(Rollout(**SMALL | {"group": 3}), context(8), 1)
    with pytest.raises(UserError, match="leaves no room for new_tokens"):
        steps(Rollout(**SMALL | {"length": 6}), context(8), 1)


def test_a_reward_model_grades_where_no_task_does() -> None:
    ctx, judge = context(16), tiny.model(seed=3)
    RewardHead().operate(judge, ctx)
    ctx.frozen = {"reward": judge.eval()}
    batch = steps(Rollout(**SMALL | {"task": {}, "sample_size": 5}), ctx, 1)[0]
    with torch.no_grad():
        torch.testing.assert_close(batch["reward"], rewards(judge, batch), atol=1e-5, rtol=1e-4)
    assert batch["reward"].unique().numel() > 8 and Rollout(**SMALL | {"task": {}}).asks()
