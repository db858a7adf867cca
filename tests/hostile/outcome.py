"""What becomes of an input: the command line in this process, what it prints and how long it may take."""

from __future__ import annotations

import contextlib
import io
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import typer.main

from tests.conftest import write_texts
from tests.hostile.inputs import Input
from tests.hostile.models import MODEL, make
from trainwright import cli
from trainwright.planning import plan

SECONDS, PATIENCE = 60, 600
"""Of work after which something hangs, and by the clock: a busy machine is no hang, and sleep is no work."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
USAGE = 2
SKIPPED = "; it is skipped"
"""How a line ends about something that a command goes on without."""
LARGEST = 3 << 19
"""KiB of memory that an input may take beyond what all before it took."""
MOST = 1100
"""Characters of a message: what ``UserError`` keeps, and the word before it."""


class Hang(BaseException):
    """It takes longer than anything may."""


class Outcome(NamedTuple):
    """How a command ended."""

    code: Any
    out: str
    err: str
    raised: str = ""
    """The exception that left it, with its last lines, where it ended with none of its own ends."""


def say(words: tuple[str, ...], folder: Path) -> Outcome:
    """One command, run in a folder as the program runs it."""
    out, err, argv, here = io.StringIO(), io.StringIO(), sys.argv, Path.cwd()
    os.chdir(folder)
    sys.argv = ["trainwright", *words]
    code, raised = None, ""
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), bounded(), _quick():
            cli.main()
    except SystemExit as ended:
        code = ended.code or 0
    except (Exception, Hang) as error:
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        at = ", ".join(f"{Path(f.filename).name}:{f.lineno}" for f in frames)
        raised = f"{type(error).__name__}: {str(error)[:200]} ({at})"
    finally:
        sys.argv = argv
        os.chdir(here)
    return Outcome(code, out.getvalue(), err.getvalue(), raised)


_built = cache(typer.main.get_command)


@contextlib.contextmanager
def _quick() -> Iterator[None]:
    """A plan without the steps in another process that an estimate rests on: they take half a minute. And the
    program built from its functions once, not for every command."""
    whole, build = plan.plan, typer.main.get_command
    plan.plan = lambda recipe, store, estimate=True, **more: whole(recipe, store, estimate=False, **more)
    typer.main.get_command = _built
    try:
        yield
    finally:
        plan.plan, typer.main.get_command = whole, build


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Within it nothing may take longer than anything may."""
    limits = ((signal.SIGPROF, signal.ITIMER_PROF, SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, PATIENCE))

    def late(number: int, frame: Any) -> None:
        raise Hang(f"after {SECONDS} seconds of work, or {PATIENCE} by the clock")

    before = [signal.signal(number, late) for number, _, _ in limits]
    for _, timer, seconds in limits:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for (number, timer, _), was in zip(limits, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, was)


def problem(given: Input, home: Path) -> str:
    """What is wrong with how an input ends, in a line; empty where it ends as it should.

    Args:
        home: has what inputs may name: ``texts``, and the model ``m`` (see ``at_home``).
    """
    folder = Path(tempfile.mkdtemp(prefix="trainwright-hostile-"))
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        (folder / "texts").symlink_to(home / "texts")
        for name, content in given.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        if MODEL in given.words:
            (folder / MODEL).mkdir(exist_ok=True)
            for file in (home / MODEL).iterdir():
                if not (folder / MODEL / file.name).exists():
                    (folder / MODEL / file.name).symlink_to(file)
        wrong = judged(given, say(given.words, folder))
        taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held
        return wrong or (f"takes {taken / 2**20:.1f} GiB of memory" if taken > LARGEST else "")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def judged(given: Input, got: Outcome) -> str:
    """No traceback, no hang; a mistake is said in one plain sentence; what must be refused is."""
    if got.raised:
        return got.raised
    if "Traceback" in got.out + got.err:
        return f"a traceback: {got.err[-300:]}"
    if CONTROL.search(got.out + got.err):
        return f"control characters: {(got.out + got.err)[-200:]!r}"
    if not isinstance(got.code, int):
        return f"ends with {got.code!r}"
    if got.code not in (0, 1, USAGE):
        return f"ends with {got.code}: {got.err[-200:]}"
    if given.refused and got.code == 0:
        return "carried out, though it must be refused"
    if got.code == 0 or "Usage:" in got.err or "Usage:" in got.out:
        return ""
    if given.words[:2] == ("store", "verify") and got.out:
        return ""
    *others, last = got.err.strip().splitlines() or [""]
    if got.code == USAGE and not last.startswith("error: "):
        return f"no error is said: {got.err[-300:]!r}"
    if any(not line.endswith(SKIPPED) for line in others):
        return f"not one sentence: {got.err[-300:]!r}"
    if len(last) > MOST or not last.endswith((".", "?", ")", SKIPPED)):
        return f"no sentence: {last[-200:]!r}"
    return ""


def at_home(home: Path) -> Path:
    """A folder with what inputs may name: the documents of the tiny life, and a model."""
    write_texts(home / "texts")
    make(home / MODEL)
    return home
