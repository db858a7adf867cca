"""How a command is ended from outside: by a signal, or because nobody reads what it prints. All stages end
alike.

The main thread is interrupted at once, unless somebody is ``patient``: a training loop finishes its step and
saves first. A second request, more than a second after the first (launchers repeat it), ends that too.
"""
from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import ClassVar

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
REPEATED = 1.0
"""Seconds within which a request is the same as the one before it."""
INSIST = 2.0
"""Seconds that an interruption has to arrive."""
LOOK = 1.0
"""Seconds between two looks whether the launcher is there."""
RESUME = "run the same command to go on"
WORDS = {signal.SIGINT: "interrupted", signal.SIGPIPE: "nobody reads the output any more"}


class Interrupted(KeyboardInterrupt):
    """The user or the machine asked to stop; what is done is saved where there is something to save.

    Args:
        said: what to print, a sentence.
        number: the signal that asked.
    """

    def __init__(self, said: str, number: int = signal.SIGINT) -> None:
        super().__init__(said)
        self.number = number


class Patience:
    """Somebody who has to finish something before the end. ``number`` is the signal that asked, 0 before."""

    def __init__(self, says: str) -> None:
        self.says, self.number = says, 0


class _Asked:
    """What was asked of this process."""

    at = -REPEATED
    """When the last request came."""
    deaf = False
    pending = False
    """Whether it was raised, and has not yet arrived."""
    patient: ClassVar[list[Patience]] = []


def ask(number: int, frame: FrameType | None = None) -> None:
    """Ask the process to end, as a signal does: it is a handler of signals.

    Raises:
        Interrupted: at once where nobody is patient.
    """
    now = time.monotonic()
    if now - _Asked.at < REPEATED:
        return
    _Asked.at = now
    if _Asked.patient and not _Asked.patient[-1].number:
        _Asked.patient[-1].number = number
        _tell(f"{word(number)}: {_Asked.patient[-1].says}")
        return
    if not _Asked.pending and number in SIGNALS:
        _Asked.pending = True
        threading.Thread(target=_insist, args=(number,), daemon=True).start()
    raise Interrupted(f"{word(number)}; {RESUME}", number)


def _insist(number: int) -> None:
    """Ask again until it is heard: libraries swallow it, those for example that try to import others."""
    time.sleep(INSIST)
    while _Asked.pending:
        _Asked.at = -REPEATED
        signal.pthread_kill(threading.main_thread().ident or 0, number)
        time.sleep(INSIST)


def arrived() -> None:
    """The interruption has reached those who clean up behind it; they are left to it."""
    _Asked.pending = False


def word(number: int) -> str:
    """What a signal means, in a word or two."""
    return WORDS.get(signal.Signals(number), f"ended by {signal.Signals(number).name}")


def code(stopped: KeyboardInterrupt) -> int:
    """The exit code of a process that was asked to end: 128 and the signal."""
    return 128 + (stopped.number if isinstance(stopped, Interrupted) else signal.SIGINT)


def sentence(stopped: KeyboardInterrupt) -> str:
    """What to print of it."""
    return str(stopped) or f"interrupted; {RESUME}"


def leave_to_parent() -> None:
    """Signals are for the process that started this one, which then ends it."""
    _Asked.deaf = True
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def heard() -> Iterator[None]:
    """Within it the signals that ask to end are heard; not the end of the terminal, where we were started to
    ignore it (``nohup``)."""
    here = threading.current_thread() is threading.main_thread()
    if not here or _Asked.deaf or signal.getsignal(signal.SIGTERM) is ask:
        yield
        return
    before = {s: signal.getsignal(s) for s in SIGNALS}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        del before[signal.SIGHUP]
    _Asked.at = -REPEATED
    for s in before:
        signal.signal(s, ask)
    try:
        yield
    finally:
        arrived()
        for s, handler in before.items():
            signal.signal(s, handler)


@contextmanager
def patient(patience: Patience) -> Iterator[None]:
    """Within it a request to end is noted in ``patience``; whoever is patient raises ``Interrupted`` in good
    time. At the latest it is raised at the end."""
    _Asked.patient.append(patience)
    try:
        with heard():
            yield
    finally:
        _Asked.patient.remove(patience)
    if patience.number:
        raise Interrupted(f"{word(patience.number)}; {RESUME}", patience.number)


def follow(parent: int) -> None:
    """End as a signal has it once the process that started this one is gone. A launcher that is killed would
    leave its ranks behind."""
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _tell(line: str) -> None:
    """Print a line at once: not through what may be in the middle of printing."""
    if os.environ.get("RANK", "0") == "0":
        with suppress(OSError):
            os.write(2, f"{line}\n".encode())
