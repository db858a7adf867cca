"""A process of its own that takes orders: runs of a comparison in parallel, and costs measured apart from everything else.

A worker that is killed (out of memory, say) is a failure of what it was doing, and of nothing else.
"""
from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import Any

from trainwright.core.errors import UserError

FAILURES = (UserError, MemoryError, ArithmeticError, RuntimeError)
"""What may go wrong in a run without the comparison being wrong: a loss that is no number, no more memory, a shape that a method
cannot take (torch tells the latter two by RuntimeError)."""


class Failed(Exception):
    """What the worker was doing failed; the reason is for people."""


class Worker:
    """Orders to a process: ``ask(function, arguments …)`` runs a module's function there and returns what it returns."""

    def __init__(self, threads: int | None = None) -> None:
        count = {"OMP_NUM_THREADS": str(threads)} if threads else {}
        self.process = subprocess.Popen([sys.executable, "-m", "trainwright.compare.worker"], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"} | count)

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Raises Failed with the reason, KeyboardInterrupt where the worker was interrupted, RuntimeError for a bug."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            pickle.dump((function, arguments), self.process.stdin)
            self.process.stdin.flush()
            how, what = pickle.load(self.process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            code = self.process.wait()
            if code in (-signal.SIGTERM, -signal.SIGINT):
                raise KeyboardInterrupt from None
            raise Failed(f"its process was killed by signal {-code} ({_name(-code)})" if code < 0
                         else f"its process ended with code {code}") from None
        if how == "failed":
            raise Failed(what)
        if how == "interrupted":
            raise KeyboardInterrupt(what)
        if how == "broken":
            raise RuntimeError(f"in a worker process:\n{what}")
        return what

    def close(self) -> None:
        """End the process; a run in it saves what it has."""
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def _name(number: int) -> str:
    return "out of memory, most likely" if number == signal.SIGKILL else signal.Signals(number).name


def reason(error: BaseException) -> str:
    """Why a run failed, in a line."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def answer(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[str, Any]:
    """What a worker says of an order."""
    try:
        return "done", function(*arguments)
    except FAILURES as error:
        return "failed", reason(error)
    except KeyboardInterrupt as stopped:
        return "interrupted", str(stopped)
    except Exception:
        return "broken", traceback.format_exc()


def main() -> None:
    """Take orders until there are no more; what others print does not mix with the answers."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        while True:
            try:
                function, arguments = pickle.load(sys.stdin.buffer)
            except (EOFError, KeyboardInterrupt):
                return
            said = answer(function, arguments)
            pickle.dump(said, out)
            out.flush()
            if said[0] == "interrupted":
                return


if __name__ == "__main__":
    main()
