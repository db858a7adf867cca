"""A process that answers: what it returns, what it raises, how it dies."""
from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import environment
from trainwright.core import recipe, registry
from trainwright.core.errors import UserError
from trainwright.planning.worker import Died, Worker


@pytest.fixture
def one() -> Iterator[Worker]:
    with Worker() as made:
        yield made


@pytest.mark.slow
def test_it_answers_from_one_other_process(one: Worker) -> None:
    first = one.ask(os.getpid)
    assert first != os.getpid() and one.ask(os.getpid) == first
    assert one.ask(operator.add, 2, 3) == 5


@pytest.mark.slow
def test_what_was_begun_goes_on_while_another_works(one: Worker, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with Worker() as other:
        other.begin(Path.read_text, tmp_path / "pipe")                # waits for somebody who writes
        assert one.ask(Path.write_text, tmp_path / "pipe", "heard") == 5
        assert other.answer() == "heard"


def test_what_is_printed_there_is_no_answer(one: Worker) -> None:
    one.ask(print, "a line that a library prints")
    assert one.ask(operator.add, "a", "b") == "ab"


def test_mistakes_come_back_as_they_are(one: Worker) -> None:
    with pytest.raises(UserError, match=r"there is no recipe nowhere\.toml\."):
        one.ask(recipe.load, "nowhere.toml")
    assert one.ask(operator.add, 1, 1) == 2, "it goes on"


def test_other_errors_come_back_with_their_place(one: Worker) -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        one.ask(operator.truediv, 1, 0)


def test_a_process_that_dies_is_told_and_replaced(one: Worker) -> None:
    first = one.ask(os.getpid)
    with pytest.raises(Died, match=r"signal 9 \(SIGKILL\)"):
        one.ask(os.kill, first, 9)
    with pytest.raises(Died, match="exit code 3"):
        one.ask(os._exit, 3)
    assert one.ask(os.getpid) != first


def test_it_ends_with_the_one_that_asks() -> None:
    with Worker() as made:
        number = made.ask(os.getpid)
    gone(number)


def gone(number: int) -> None:
    """Wait until a process is."""
    until = time.monotonic() + 20
    while runs(number) and time.monotonic() < until:
        time.sleep(0.01)
    assert not runs(number)


def runs(number: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_is_no_rank_and_imports_what_we_do(one: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("OTHER", "kept")
    assert one.ask(os.getenv, "RANK") is None and one.ask(os.getenv, "OTHER") == "kept"
    there = one.ask(eval, "__import__('sys').path")
    assert there[:-1] == [p for p in sys.path if p] and there[-1] == str(registry.ROOT.parent)
    with Worker(threads=3) as few:
        assert few.ask(os.getenv, "OMP_NUM_THREADS") == "3"


def test_nothing_is_imported_from_the_folder_it_runs_in(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's folder may hold a pickle.py."""
    for name in ("pickle", "json", "torch", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')\nraise SystemExit(7)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    with Worker() as made:
        assert made.ask(operator.add, 1, 1) == 2
    assert not (tmp_path / "ran").exists()


PARENT = """
import os, sys, time
from trainwright.planning.worker import Worker
worker = Worker()
print(worker.ask(os.getpid), flush=True)
worker.begin(time.sleep, 600)
time.sleep(600)
"""


@pytest.mark.slow
def test_it_ends_with_one_that_is_killed_even_in_the_middle_of_its_work() -> None:
    line = [sys.executable, "-c", PARENT]
    with subprocess.Popen(line, env=environment(), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        number = int(parent.stdout.readline())
        assert runs(number)
        parent.kill()
    gone(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_for_the_one_that_asks(number: int, one: Worker) -> None:
    """Ctrl-C, a closed terminal and a scheduler reach all processes of a group, in any order."""
    os.kill(one.ask(os.getpid), number)
    assert one.ask(operator.add, 1, 2) == 3
