"""Generators of reasoning_gym: their questions, their verifiers in a process of their own."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from trainwright.check import tiny
from trainwright.core.errors import UserError
from trainwright.evaluate import reasoning_gym as bridge
from trainwright.evaluate.reasoning_gym import ReasoningGym

WORKER = """
import json, sys, time
print(json.dumps({"answer": None}), flush=True)
for line in sys.stdin:
    told = json.loads(line)
    if told["answer"] == "hang": time.sleep(100)
    right = told["entry"]["answer"] == told["answer"] and told["options"] == {"terms": 1}
    print(json.dumps({"answer": 1.0 if right else 0.01}), flush=True)
"""


def test_the_verifier_grades_apart_and_may_be_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setattr(bridge, "WORKER", tmp_path / "worker.py")
    monkeypatch.setattr(bridge, "facts", lambda ctx: {"q": {"entry": {"answer": "7"}}, "other": {}})
    monkeypatch.setattr(ReasoningGym, "_package", lambda self: None)
    grade = ReasoningGym(seconds=0.3, options={"terms": "level"}).grader(tiny.context(tiny.place()))
    assert (grade("q", "7"), grade("q", "8")) == (1.0, 0.01)
    assert math.isnan(grade("q", "hang")) and math.isnan(grade("other", "7"))
    assert grade("q", "7") == 1.0


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"trainwright\[gym\]"):
        ReasoningGym().question(random.Random(0), 1)


def test_a_generator_makes_questions_and_grades_them() -> None:
    pytest.importorskip("reasoning_gym")
    task = ReasoningGym(options={"min_terms": "level", "max_terms": "level"}, fresh=3, most=2)
    one = task.question(random.Random(0), 3)
    assert task.question(random.Random(0), 3) == one and one.told["entry"]["answer"] == one.answer
    ctx = tiny.context(tiny.place())
    grade = task.grader(ctx)
    for question in task._fresh(ctx):
        assert grade(question.prompt, question.answer) == 1 and grade(question.prompt, "none") < 1
    with pytest.raises(UserError, match="reasoning_gym: chain_sum"):
        ReasoningGym(options={"no_such": 1}).question(random.Random(0), 1)
