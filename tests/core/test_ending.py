"""Asked to end: at once, or after what somebody has to finish; once more, and it ends there too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.conftest import environment
from trainwright.core import ending
from trainwright.core.ending import Interrupted, Patience


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """What time it is."""
    now = [100.0]
    monkeypatch.setattr(ending.time, "monotonic", lambda: now[0])
    yield now
    ending._Asked.at = -ending.REPEATED


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", ending.SIGNALS)
def test_a_signal_interrupts_at_once(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="; run the same command to go on") as told, ending.heard():
        send(number)
        signal.pause()
    assert ending.code(told.value) == 128 + number and isinstance(told.value, KeyboardInterrupt)
    assert number == signal.SIGINT or f"ended by {number.name}" in ending.sentence(told.value)
    assert signal.getsignal(number) is before


def test_a_training_loop_is_left_to_finish_and_says_so(
    clock: list[float], capfd: pytest.CaptureFixture[str]
) -> None:
    patience = Patience("finishing the step")
    with pytest.raises(Interrupted) as told, ending.patient(patience):
        send(signal.SIGTERM)
        assert (
            patience.number == signal.SIGTERM
            and capfd.readouterr().err == "ended by SIGTERM: finishing the step\n"
        )
        send(signal.SIGTERM)  # as torchrun repeats it
        clock[0] += 2
    assert told.value.number == signal.SIGTERM, "whoever is patient ends it at the latest when that is done"
    with pytest.raises(Interrupted), ending.patient(Patience("")):
        send(signal.SIGINT)
        clock[0] += 2
        send(signal.SIGINT)
        pytest.fail("the second request ends it at once")


def test_other_ranks_say_nothing(
    clock: list[float], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(Interrupted), ending.patient(Patience("finishing")):
        send(signal.SIGINT)
    assert not capfd.readouterr().err


def test_what_a_library_swallows_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that tries to import others takes any exception for their absence."""
    monkeypatch.setattr(ending, "INSIST", 0.05)
    with pytest.raises(Interrupted), ending.heard():
        with suppress(BaseException):
            send(signal.SIGINT)
            signal.pause()
        time.sleep(30)


def test_who_cleans_up_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "INSIST", 0.05)
    with pytest.raises(Interrupted), ending.heard():
        try:
            send(signal.SIGINT)
            signal.pause()
        finally:
            ending.arrived()
            time.sleep(0.2)
            done = True
    assert done


def test_nobody_asked() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with ending.heard(), ending.patient(Patience("finishing")) as nothing:
        assert nothing is None
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_we_are_to_ignore_is_ignored() -> None:
    """``nohup`` has a program ignore the end of its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending.heard():
            send(signal.SIGHUP)
            assert (
                signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
                and signal.getsignal(signal.SIGTERM) is ending.ask
            )
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_nothing_is_heard() -> None:
    before, heard = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with ending.heard():
            heard.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard == [before]


def test_a_plain_interruption_has_its_sentence_and_code() -> None:
    assert ending.sentence(KeyboardInterrupt()) == "interrupted; run the same command to go on"
    assert ending.code(KeyboardInterrupt()) == 130 and ending.code(Interrupted("", signal.SIGPIPE)) == 141


LAUNCHER = '''
import subprocess, sys, time
child = """
import os, time
from trainwright.core import ending
ending.follow(os.getppid())
print(os.getpid(), flush=True)
time.sleep(600)
"""
rank = subprocess.Popen([sys.executable, "-c", child])
time.sleep(600)
'''


@pytest.mark.slow
def test_a_rank_ends_with_its_launcher() -> None:
    """torchrun that is killed tells nobody."""
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER], env=environment(), stdout=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None
        rank = int(launcher.stdout.readline())
        launcher.kill()
        assert rank and launcher.stdout.read() == "", "the pipe, which the rank holds too, ends with it"
