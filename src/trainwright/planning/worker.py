"""A process of its own that does what it is asked: what is measured there is charged with nothing else."""
from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import queue
import select
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from typing import IO, Any, TypeVar

import torch

from trainwright.core.errors import UserError
from trainwright.core.source import ROOT
from trainwright.planning import forkserver

T = TypeVar("T")
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
"""What torchrun tells its processes; the worker is none of them."""


class Died(Exception):
    """The process ended in the middle of its work: killed, most likely for want of memory."""


class Worker:
    """Functions of importable modules are called in another process: ``ask(function, argument …)`` returns
    what they return.

    The process starts when it is first asked and imports what this one can import.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.process: forkserver.Child | None = None
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
            self.process = forkserver.child()
            around = {k: v for k, v in os.environ.items() if k not in RANKS} | self.threads
            path = [*(p for p in sys.path if p), str(ROOT.parent)]
            self._send((around, path, os.getcwd()))
        self._send((function, arguments))

    def _send(self, what: Any) -> None:
        assert self.process is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its answer will say so
            _send(self.process.writer, what)

    @property
    def pid(self) -> int:
        """The number of the process, once it was asked something."""
        assert self.process is not None
        return self.process.pid

    def answered(self, seconds: float) -> bool:
        """Wait for so long; whether ``answer`` has something to tell."""
        assert self.process is not None
        return bool(select.select([self.process.reader], [], [], seconds)[0])

    def answer(self) -> Any:
        """What came of the work that was begun.

        Raises:
            UserError: as the function raised it.
            Died: the process was killed or ended itself.
            RuntimeError: anything else that was raised there, with its traceback.
        """
        assert self.process is not None
        try:
            how, what = pickle.loads(_receive(self.process.reader))
        except (EOFError, ConnectionResetError):
            died, self.process = self.process, None
            code = died.wait()
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
            self.process.wait()
            self.process = None


def serve(handle: int) -> None:
    """The other process: answer over a socket until nobody asks any more. What libraries print goes nowhere.
    Signals are for the process that asks, which then ends this one; where that process is gone, whatever is
    going on here ends at once."""
    asked: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(os.dup(handle), asked), daemon=True).start()
    around, path, folder = pickle.loads(asked.get())
    os.environ.clear()
    os.environ.update(around)
    sys.path[:] = path
    importlib.invalidate_caches()
    with contextlib.suppress(OSError):                          # it was removed
        os.chdir(folder)
    threads = around.get("OMP_NUM_THREADS", "").partition(",")[0]
    if threads.isdecimal() and int(threads):                    # the library has read it before
        torch.set_num_threads(int(threads))
    with os.fdopen(handle, "wb") as out:
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
