"""A process of its own that does what it is asked: what is measured there is charged with nothing else."""
from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from trainwright.core.errors import UserError

T = TypeVar("T")
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
"""What torchrun tells its processes; the worker is none of them."""
START = "from trainwright.planning.worker import serve; serve()"


class Died(Exception):
    """The process ended in the middle of its work: killed, most likely for want of memory."""


class Worker:
    """Functions of importable modules are called in another process: ``ask(function, argument …)`` returns what they return.

    The process starts when it is first asked and imports what this one can import.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.threads = {"OMP_NUM_THREADS": str(threads)} if threads else {}

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def ask(self, function: Callable[..., T], *arguments: Any) -> T:
        """The answer; raises what ``answer`` raises."""
        self.begin(function, *arguments)
        return self.answer()  # type: ignore[no-any-return]

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Hand the work over and do not wait: ``answer`` tells what came of it. One piece of work at a time."""
        if self.process is None:
            path = os.pathsep.join(p for p in sys.path if p)
            around = {k: v for k, v in os.environ.items() if k not in RANKS} | {"PYTHONPATH": path} | self.threads
            self.process = subprocess.Popen([sys.executable, "-c", START], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=subprocess.DEVNULL, env=around)
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):              # it has died: its answer will say so
            pickle.dump((function, arguments), self.process.stdin)
            self.process.stdin.flush()

    def answer(self) -> Any:
        """What came of the work that was begun.

        Raises:
            UserError: as the function raised it.
            Died: the process was killed or ended itself.
            RuntimeError: anything else that was raised there, with its traceback.
        """
        assert self.process is not None and self.process.stdout is not None
        try:
            how, what = pickle.load(self.process.stdout)
        except EOFError:
            died, self.process = self.process, None
            died.communicate()                                  # waits, and closes the pipes
            code = died.returncode
            raise Died(f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}") from None
        if how == "mistake":
            raise UserError(what)
        if how == "broken":
            raise RuntimeError(f"in a process started for it:\n{what}")
        return what

    def close(self) -> None:
        """End the process. Nothing of what it does outlives it."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def serve() -> None:
    """The other process: answer until nobody asks any more. What libraries print does not mix with the answers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)                # Ctrl-C is for the process that asks, which then ends this one
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        while True:
            try:
                function, arguments = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            pickle.dump(_answer(function, arguments), out)
            out.flush()


def _answer(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[str, Any]:
    try:
        return "done", function(*arguments)
    except UserError as error:
        return "mistake", str(error)
    except Exception:
        return "broken", traceback.format_exc()
