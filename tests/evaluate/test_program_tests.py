"""Programs as a task: which part of an answer is the program, and that its document's tests decide."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from trainwright.check import tiny
from trainwright.core.errors import UserError
from trainwright.evaluate import program_tests
from trainwright.evaluate.program_tests import ProgramTests
from trainwright.lm.sandbox import Limits, Ran

QUICK = Limits(seconds=1.0, megabytes=256)


def test_tests_of_the_document_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {
        "Double x.": {"tests": "assert double(3) == 6"},
        "def double(x):\n": {"tests": "assert double(3) == 6"},
    }
    monkeypatch.setattr(program_tests, "facts", lambda ctx: told)
    ctx = tiny.context(tiny.place())
    grade = ProgramTests(limits=QUICK).grader(ctx)
    block = "First:\n```\nx = 1\n```\nbetter:\n```python\ndef double(x): return 2 * x\n```\n"
    assert grade("Double x.", block) == 1
    assert grade("Double x.", "def double(x): return x") == 0 and grade("Double x.", "I cannot.") == 0
    assert math.isnan(grade("Triple x.", block))
    assert [value for value, _ in ctx.notes["program_tests/timeout"]] == [0, 0, 0]
    assert ProgramTests(complete=True, limits=QUICK).grader(ctx)("def double(x):\n", "    return x + x") == 1


def test_what_the_system_leaves_open_is_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_tests, "facts", lambda ctx: {"q": {}})
    monkeypatch.setattr(program_tests, "run", lambda *rest: Ran("timeout", "", ("network",)))
    ctx = tiny.context(tiny.place())
    assert ProgramTests(tests="pass").grader(ctx)("q", "pass") == 0
    assert "can reach the network" in ctx.texts["program_tests"]
    assert ctx.notes["program_tests/timeout"][0][0] == 1


def test_without_any_tests_it_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(program_tests, "facts", lambda ctx: {"q": {}})
    with pytest.raises(UserError, match="no document of the corpus has tests"):
        ProgramTests().grader(tiny.context(tiny.place()))
