"""How the command line ends: one sentence, and an exit code that says why.

0: done. 2: a mistake of the user's, or something that the machine refused. 128 and a signal: asked to stop,
also by a closed output (141). A traceback is a mistake of ours.
"""
from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import typer
from rich.text import Text
from typer.core import TyperGroup

from trainwright import cli_machine as machine
from trainwright.core import ending
from trainwright.core.errors import UserError, exited
from trainwright.core.shown import plain
from trainwright.life import working
from trainwright.report.terminal import Terminal, styled

RANK_0_FIRST = 15.0
"""Seconds that another rank waits before it reports a mistake: rank 0 may have a report to write."""


USAGE: Any = typer.BadParameter.__base__
"""What is raised for a command line that cannot be read."""


@contextmanager
def _shown() -> Iterator[None]:
    """What is said of a command line repeats words of it, which are shown as they are."""
    try:
        yield
    except USAGE as error:
        error.message = plain(error.message)
        raise


class Commands(TyperGroup):
    """The commands, each of which ends alike when it is asked to."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _shown():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            with ending.heard(), _shown(), working.shown(_called()):
                return super().invoke(ctx)
        except SystemExit as ended:
            raise UserError(exited(ended)) from None
        except BrokenPipeError:
            raise typer.Exit(128 + signal.SIGPIPE) from None
        except KeyboardInterrupt as stopped:
            if ending.code(stopped) != 128 + signal.SIGPIPE:       # who closes the output knows it
                interrupted(stopped)
            raise typer.Exit(ending.code(stopped)) from None


def _called() -> str:
    """The command that was asked for."""
    return next((word for word in sys.argv[1:] if not word.startswith("-")), "trainwright")


def interrupted(stopped: KeyboardInterrupt) -> None:
    """Say why a command ended before its end, and how to go on."""
    if os.environ.get("RANK", "0") == "0":
        _say(styled("[yellow]{}[/]", ending.sentence(stopped)))


def carry_out(app: Callable[[], None]) -> None:
    """Run the command line to one of its ends."""
    _open_outputs()
    try:
        app()
    except UserError as error:
        _after_rank_0()
        _fail(_with_line(str(error)))
    except BaseException as error:
        said = None if isinstance(error, SystemExit) else machine.refused(error)
        if said is None:
            raise
        if machine.exhausted(error):
            sys.unraisablehook = _say_nothing                       # libraries fail on their way out, too
        _fail(said)
    finally:
        _flush()


def _with_line(why: str) -> str:
    """A mistake with the line of the recipe that it is about; a setting of ``--set`` has none."""
    from trainwright.planning.lines import line_of
    line = None if "--set" in sys.argv else line_of(why)
    return why if line is None else f"{why.rstrip('.')} (line {line})"


def _fail(why: str) -> None:
    end = "" if why.endswith((".", "?", ")", "!")) else "."
    _say(styled("[bold red]error:[/] {}", f"{why}{end}"))
    if "torch" in sys.modules:
        from trainwright.core import sharding
        sharding.stop()
    sys.exit(2)


def _say(line: Text) -> None:
    try:
        Terminal(stderr=True).print(line, soft_wrap=True)
    except (OSError, MemoryError):
        with suppress(OSError):
            os.write(2, f"{line.plain}\n".encode())


def _say_nothing(unraisable: object) -> None:
    """Of what goes wrong while the process ends: it has been said why."""


def _open_outputs() -> None:
    """Where the caller has closed standard input or output, nothing else must be opened in their place."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)                          # takes the lowest number that is free
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _flush() -> None:
    """Print what is left, or drop it where nobody takes it: at its exit Python would fail on it again."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)


def _after_rank_0() -> None:
    """Of several processes rank 0 speaks first. Where it has failed too, torchrun ends this one while it
    waits, so that a mistake is reported once; one that this rank alone has found is reported after the wait,
    with its connections still open."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(RANK_0_FIRST)
