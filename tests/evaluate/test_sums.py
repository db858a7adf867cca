"""Arithmetic as a task: the number and nothing else, Wilson's interval, levels."""
from __future__ import annotations

import math

import pytest

from trainwright.check import tiny
from trainwright.core.errors import UserError
from trainwright.core.method import Task
from trainwright.evaluate import _solving
from trainwright.evaluate.sums import Sums


def test_only_the_number_is_right() -> None:
    task, asked = Sums(), "What is 17 - 25?"
    assert [task.grade(asked, said) for said in ("-8", " -8.\n", "8", "-8 or 8", "", "17 - 25 = -8")] == [
        1, 1, 0, 0, 0, 0]
    assert task.grade("What is 12 * 12?", "144") == 1 and task.grade("3+4", "7") == 1
    assert math.isnan(task.grade("How are you?", "7"))


def test_the_interval_is_that_of_wilson() -> None:
    """8 of 10 at z = 1.96: (p + z²/2n ± z sqrt(p q/n + z²/4n²)) / (1 + z²/n), without what has no grade."""
    told = _solving.rate("sums", [1.0] * 8 + [0.0] * 2 + [math.nan] * 3)
    assert told["sums"] == 0.8 and told["sums_ungraded"] == 3
    z, n, p = 1.959964, 10, 0.8
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    ends = [(p + z * z / (2 * n) + sign * half) / (1 + z * z / n) for sign in (-1, 1)]
    assert [told["sums_low"], told["sums_high"]] == pytest.approx(ends, abs=1e-6)
    with pytest.raises(UserError, match="none of the 2 prompts can be graded"):
        _solving.rate("sums", [math.nan] * 2)


def test_it_measures_by_level(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = ("What is 3 + 4?", "What is 5 + 1?", "What is 12 - 5?")

    def say(task: Task, *rest: object) -> list[_solving.Solved]:
        told = zip(questions, ("7", "7", "7"), strict=True)
        return [_solving.Solved(q, a, task.grade(q, a)) for q, a in told]
    monkeypatch.setattr("trainwright.evaluate.sums.solved", say)
    told = Sums(questions=questions).measure(tiny.model(), tiny.context(tiny.place()))
    assert told["sums"] == pytest.approx(2 / 3) and (told["sums/1"], told["sums/2"]) == (0.5, 1.0)


def test_it_asks_the_corpus_or_its_own_questions() -> None:
    ctx = tiny.context(tiny.place())
    told = Sums(questions=("What is 3 + 4?",), new_tokens=2).measure(tiny.model(), ctx)
    assert told["sums_ungraded"] == 0 and 0 <= told["sums_low"] <= told["sums"]
    with pytest.raises(UserError, match="sums: none of the 3 prompts can be graded"):
        Sums(domains=("chat",), most=3, new_tokens=2).measure(tiny.model(), ctx)
