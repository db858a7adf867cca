"""Checks that may hang, in a process of their own that is killed when its time is up.

    with Apart(Path("worker.py"), seconds=5) as apart:
        apart.ask({"gold": "1/2", "answer": "0.5"})          # what the worker says, or TimeoutError

A worker is a script that answers each line of JSON on its standard input by a line of JSON on its standard
output (``answering``). It starts when it is first asked, stays for the next question, and starts anew after
it was killed: signals and threads, by which libraries end a check of their own, do not work everywhere; this
does. A worker that dies of a question has failed it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST = 1 << 20
"""Bytes of a line that a worker says."""
STARTING = 60.0
"""Seconds that a worker may take to import what it needs."""


class Failed(Exception):
    """The worker could not answer; it says why."""


@dataclass
class Apart:
    """A worker, and how long it may think about a question."""

    script: Path
    seconds: float
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def ask(self, question: dict[str, Any]) -> Any:
        """The worker's answer.

        Raises:
            TimeoutError: its time was up; it is gone.
            Failed: it could not.
        """
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(self.script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            self._line(STARTING)
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Failed("it ended") from None
        told = self._line(self.seconds)
        if "failed" in told:
            raise Failed(told["failed"])
        return told["answer"]

    def _line(self, seconds: float) -> dict[str, Any]:
        assert self.process is not None and self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            self.close()
            raise TimeoutError
        line = self.process.stdout.readline(MOST)
        if not line:
            self.close()
            raise Failed("it ended")
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError, RecursionError):     # a library printed something
            self.close()
            raise Failed("it said something else than an answer") from None

    def close(self) -> None:
        """Kill the worker, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
