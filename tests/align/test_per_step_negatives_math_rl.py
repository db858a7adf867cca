"""Per-step negatives: where a solution went wrong, by hand, and that what comes before costs nothing."""
from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.align.pairs import context, moved
from trainwright.align._pairs import Pairs
from trainwright.align.dpo import Dpo
from trainwright.align.per_step_negatives_math_rl import PerStepNegativesMathRl, beginnings, fall
from trainwright.check import tiny
from trainwright.core.errors import UserError

GRADER = '''from trainwright.core.method import Task


class Script(Task):
    def grade(self, prompt, answer):
        return float("nan") if "lost" in answer else float(answer.endswith("7"))
'''


class Scripted:
    """Says what it is told to, by what an answer begins with."""

    def __init__(self, lines: Mapping[str, list[str]]) -> None:
        self.lines, self.asked = lines, []

    def answers(self, asked: Mapping[str, Any], samples: int, new_tokens: int, temperature: float,
                batch_size: int, begun: Mapping[str, str] | None = None) -> dict[str, list[str]]:
        self.asked += [(name, samples) for name in asked]
        return {name: self.lines[(begun or {}).get(name, "")] for name in asked}


def made(tmp_path: Path, lines: Mapping[str, list[str]], **settings: Any) -> Any:
    (tmp_path / "script.py").write_text(GRADER)
    ctx = context()
    ctx.root = tmp_path
    method = PerStepNegativesMathRl(task={"use": "./script.py"}, separator=";", answers=4, rollouts=2,
                                    **settings)
    writer = Scripted(lines)
    turns = [{"role": "user", "content": "3 + 4?"}]
    return method.pairs({"a": turns}, writer, ctx), writer  # type: ignore[arg-type]


def test_the_step_where_it_went_wrong(tmp_path: Path) -> None:
    """One of three that are graded is right: Q = 1/3, then 1 behind the first step, 0 behind the second."""
    lines = {"": ["start;bad;so 8", "7", "lost", "9"], "start;": ["7", "and 7"], "start;bad;": ["8", "lost"]}
    (pairs, why), writer = made(tmp_path, lines)
    assert pairs == {"a": ([{"role": "user", "content": "3 + 4?"}], "start;7", "start;bad;so 8")} and not why
    assert writer.asked == [("a", 4), ("a/1", 2), ("a/2", 2)]
    (pairs, _), _ = made(tmp_path, lines | {"start;": ["fine;7", "8"]}, whole=False)
    assert pairs["a"][1:] == ("start;fine;", "start;bad;")


def test_a_hard_prompt_is_no_wrong_step(tmp_path: Path) -> None:
    """Q is low all along: nothing falls by a half. What falls first is taken, not what is lowest."""
    lines = {"": ["s;t;8", "7", "8", "8"], "s;": ["7", "8"], "s;t;": ["8", "7"]}
    (pairs, _), _ = made(tmp_path, lines)
    assert pairs["a"][1] == "s;t;7" and pairs["a"][2] == "s;t;8"
    (pairs, why), _ = made(tmp_path, lines, drop=0.6)
    assert not pairs and "no step" in why["a"]
    (pairs, why), _ = made(tmp_path, {"": ["8", "9", "1", "2"]})
    assert why["a"] == "none of its solutions is right"
    (pairs, why), _ = made(tmp_path, {"": ["7", "17", "27", "37"]})
    assert why["a"] == "none of its solutions is wrong"


def test_steps_and_falls_by_hand() -> None:
    assert beginnings("a;b;c", ";") == ["", "a;", "a;b;"] == beginnings("a;b;c;", ";")
    assert beginnings("a", ";") == [""]
    assert fall([0.5, 0.9, 0.3, 0.0], 0.5) == 1 and fall([0.5, 0.5, 0.0], 0.5) == 1
    assert fall([0.5, math.nan, 0.0], 0.5) is None and fall([0.6, 0.0], 0.5) == 0


def test_what_two_answers_begin_with_is_not_learned() -> None:
    """DPO on whole answers is the loss of their parts behind what they have in common, gradient and all."""
    model, reference = moved(), tiny.model()
    common, good, bad = [5, 6, 7, 8, 9], [10, 11, 12], [13, 14]

    def logp(one: Any, ids: list[int], first: int) -> torch.Tensor:
        whole = torch.tensor([[*common, *ids]])
        each = one(input_ids=whole).logits[0, :-1].log_softmax(-1).gather(1, whole[0, 1:, None])[:, 0]
        return each[first:].sum()[None]

    def gradient(first: int) -> list[torch.Tensor]:
        none = torch.ones(1)
        pairs = [Pairs(logp(one, good, first), logp(one, bad, first), none, none)
                 for one in (model, reference)]
        value = Dpo(beta=0.5).loss_of(*pairs).sum()
        return [value, *torch.autograd.grad(value, list(model.parameters()))]
    for whole, part in zip(gradient(1), gradient(len(common) - 1), strict=True):
        torch.testing.assert_close(whole, part, atol=1e-6, rtol=1e-4)


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="separator must say"):
        PerStepNegativesMathRl(task={"use": "sums"}, separator="")
    with pytest.raises(UserError, match="samples grades no answers"):
        PerStepNegativesMathRl(task={"use": "samples", "prompts": ["a"]}).pairs({}, Scripted({}), context())  # type: ignore[arg-type]
