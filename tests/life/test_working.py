"""The line that says what a command is doing: when it appears, and that it leaves nothing behind."""
from __future__ import annotations

import io
import sys
import threading

import pytest

from trainwright.life import working
from trainwright.report.terminal import Terminal


class Screen(io.StringIO):
    """A terminal that keeps what was written to it, and says when something came."""

    def __init__(self, person: bool) -> None:
        super().__init__()
        self.person, self.came = person, threading.Event()

    def isatty(self) -> bool:
        return self.person

    def write(self, text: str) -> int:
        if "·" in text:
            self.came.set()
        return super().write(text)


def terminal(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Standard error is one; no fixture, since pytest puts its own back behind those."""
    made = Screen(True)
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setattr(working, "FIRST", 0.01)
    monkeypatch.setattr(working, "EVERY", 0.01)
    return made


def test_it_says_what_is_done_and_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    with working.shown("plan"):
        assert screen.came.wait(10)
        working.on("estimating the stage base")
        while "base" not in screen.getvalue():
            screen.came.clear()
            assert screen.came.wait(10)
    said = screen.getvalue()
    assert "plan: getting ready · 0 s" in said and "plan: estimating the stage base · 0 s" in said
    assert said.endswith(working.ERASE) and "\n" not in said


def test_who_prints_has_the_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    with working.shown("plan"):
        assert screen.came.wait(10)
        Terminal(file=io.StringIO()).print("a table")
        before = screen.getvalue()
        assert before.endswith(working.ERASE)
        screen.came.clear()
        assert not screen.came.wait(0.1), "it keeps still …"
        working.on("estimating")
        assert screen.came.wait(10), "… until there is something to say again"


def test_nobody_at_a_terminal_sees_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Screen(False)
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(working, "FIRST", 0.0)
    with working.shown("plan"):
        working.on("estimating")
        assert not log.came.wait(0.05)
    assert log.getvalue() == ""
