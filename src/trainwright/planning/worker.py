"""A process of its own that does what it is asked: what is measured there is charged with nothing else."""
from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from typing import IO, Any, TypeVar

from trainwright.core import ending
from trainwright.core.errors import UserError
from trainwright.core.source import ROOT

T = TypeVar("T")
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
"""What torchrun tells its processes; the worker is none of them."""
START = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from trainwright.planning.worker import serve
serve()"""


class Died(Exception):
    """The process ended in the middle of its work: killed, most likely for want of memory."""


class Worker:
    """Functions of importable modules are called in another process: ``ask(function, argument …)`` returns
    what they return.

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
        """Hand the work over and do not wait: ``answer`` tells what came of it. One piece of work at a
        time."""
        if self.process is None:
            path = [*(p for p in sys.path if p), str(ROOT.parent)]
            around = {k: v for k, v in os.environ.items() if k not in RANKS} | self.threads
            line = [sys.executable, "-P", "-c", START, json.dumps(path)]
            self.process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=subprocess.DEVNULL, env=around)
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):              # it has died: its answer will say so
            _send(self.process.stdin, (function, arguments))

    def answer(self) -> Any:
        """What came of the work that was begun.

        Raises:
            UserError: as the function raised it.
            Died: the process was killed or ended itself.
            RuntimeError: anything else that was raised there, with its traceback.
        """
        assert self.process is not None and self.process.stdout is not None
        try:
            how, what = pickle.loads(_receive(self.process.stdout))
        except EOFError:
            died, self.process = self.process, None
            died.communicate()                                  # waits, and closes the pipes
            code = died.returncode
            how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
            raise Died(how) from None
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
    """The other process: answer until nobody asks any more. What libraries print does not mix with
    the answers. Signals are for the process that asks, which then ends this one; where that process is gone,
    whatever is going on here ends at once."""
    ending.leave_to_parent()
    asked: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(os.dup(0), asked), daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        while True:
            function, arguments = pickle.loads(asked.get())
            _send(out, _answer(function, arguments))


def _listen(handle: int, asked: queue.SimpleQueue[bytes]) -> None:
    """Take what is asked, also while an answer is worked on: the end of it is the end of the process."""
    with os.fdopen(handle, "rb") as pipe:
        try:
            while True:
                asked.put(_receive(pipe))
        except EOFError:
            os._exit(0)


def _send(pipe: IO[bytes], what: Any) -> None:
    data = pickle.dumps(what)
    pipe.write(struct.pack("<Q", len(data)) + data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    """The next thing sent, still pickled."""
    head = pipe.read(8)
    data = pipe.read(struct.unpack("<Q", head)[0]) if len(head) == 8 else b""
    if len(head) < 8 or len(data) < struct.unpack("<Q", head)[0]:
        raise EOFError
    return data


def _answer(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[str, Any]:
    try:
        return "done", function(*arguments)
    except UserError as error:
        return "mistake", str(error)
    except Exception:
        return "broken", traceback.format_exc()
