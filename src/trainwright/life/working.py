"""What a command is doing while it says nothing else: one line on the terminal, which goes away again.

Only a person at a terminal sees it (standard error must be one). The command line begins it, whoever takes
long says what at, and whoever prints ends it.
"""
from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

FIRST, EVERY = 0.5, 0.5
"""Seconds until the line appears, and between two looks of it."""
ERASE = "\r\x1b[K"


class Line:
    """The line of one command."""

    def __init__(self, command: str) -> None:
        self.command, self.what, self.began = command, "getting ready", time.monotonic()
        self.lock, self.over, self.drawn = threading.Lock(), threading.Event(), False
        self.quiet = False
        """Whether something else is on the terminal."""
        self.thread = threading.Thread(target=self._draw, daemon=True)
        self.thread.start()

    def _draw(self) -> None:
        wait = FIRST
        while not self.over.wait(wait):
            wait = EVERY
            with self.lock, suppress(OSError, ValueError):
                if not self.quiet:
                    seconds = time.monotonic() - self.began
                    self.drawn = True
                    print(f"{ERASE}{self.command}: {self.what} · {seconds:.0f} s", end="", file=sys.stderr,
                          flush=True)

    def erase(self) -> None:
        """Take it away and keep still."""
        with self.lock, suppress(OSError, ValueError):
            self.quiet = True
            if self.drawn:
                print(ERASE, end="", file=sys.stderr, flush=True)
            self.drawn = False


_lines: list[Line] = []


def on(what: str) -> None:
    """Say what is being done from now on."""
    for line in _lines:
        line.what, line.quiet = what, False


def printing() -> None:
    """Something is about to be printed: the line makes place, until the next ``on``."""
    for line in _lines:
        line.erase()


@contextmanager
def shown(command: str) -> Iterator[None]:
    """Show the line while a command works, where there is a terminal."""
    with suppress(AttributeError, OSError, ValueError):
        if sys.stderr.isatty():
            _lines.append(Line(command))
    try:
        yield
    finally:
        for line in _lines:
            line.over.set()
            line.erase()
        _lines.clear()
