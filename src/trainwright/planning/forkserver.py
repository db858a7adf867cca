"""Processes that start with everything imported: they are forked from one that waits until it is asked.

To import torch, transformers and this package takes seconds, which each process of a plan or a comparison
would spend again. The one that is forked has imported them and done nothing else: it has no threads at work,
and has not touched a GPU, so that a copy of it is as good as a fresh process. Python's own fork server would
run the main module of whoever asks, and import from the folder that it is in.

Linux only; elsewhere a fork is not safe with what torch stands on, and each process starts anew.
"""
from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

from trainwright.core import ending
from trainwright.core.source import ROOT
from trainwright.storage import identity

FORKS = sys.platform == "linux"
MODULES = ("trainwright.planning.probe", "trainwright.compare.costs", "trainwright.compare.execute",
           "trainwright.life.run", "trainwright.report.page", "transformers.modeling_utils",
           "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto")
"""What most processes need."""
METHODS = ("trainwright.data.sources.text.text", "trainwright.data.order.pack",
           "trainwright.pretrain.next_token", "trainwright.optim.adamw", "trainwright.evaluate.held_out")
"""What most recipes use; artifacts depend on their code, which takes a third of a second to read."""
START = """import gc, json, sys
gc.disable()                                # while modules are imported: nearly all of it stays
sys.path[:] = json.loads(sys.argv[1])
from trainwright.planning import forkserver, worker
forkserver.{serve}(int(sys.argv[2]){more})"""
Serve = Callable[[int], None]


class Child:
    """A process that talks over a socket.

    Args:
        mine: this end of the socket.
        status: a pipe that tells its number and, once it has ended, its exit code (negative for a signal); or
            the process itself, where it was not forked.
    """

    def __init__(self, mine: socket.socket, status: IO[bytes] | subprocess.Popen[bytes]) -> None:
        self.reader, self.writer = mine.makefile("rb"), mine.makefile("wb")
        mine.close()                                            # the files keep it open
        self.status = status
        if isinstance(status, subprocess.Popen):
            self.pid = status.pid
            return
        line = status.readline()
        if not line:
            raise BrokenPipeError
        self.pid = int(line)
        with contextlib.suppress(ProcessLookupError):           # it has ended already
            self.handle = os.pidfd_open(self.pid)

    def kill(self) -> None:
        if isinstance(self.status, subprocess.Popen):
            self.status.kill()
        elif self.handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.handle, signal.SIGKILL)

    def wait(self) -> int:
        """Its exit code; nothing of it is left open."""
        self.reader.close()
        with contextlib.suppress(BrokenPipeError):
            self.writer.close()
        if isinstance(self.status, subprocess.Popen):
            return self.status.wait()
        if self.handle is not None:
            os.close(self.handle)
        with self.status:
            code = self.status.readline()
        return int(code) if code else -signal.SIGKILL           # with the server, which had no time to say it

    handle: int | None = None


class _Server:
    """The process that waits; started when it is first needed, or before."""

    control: socket.socket | None = None
    process: subprocess.Popen[bytes] | None = None
    lock = threading.Lock()

    def begin(self) -> None:
        if self.control is None:
            self.control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.process = _started("main", other, ", worker.serve")

    def end(self) -> None:
        """Let go of what is gone."""
        assert self.control is not None and self.process is not None
        self.control.close()
        self.process.wait()
        self.control = None

    def fork(self) -> Child:
        """A new process.

        Raises:
            OSError: the server is gone.
        """
        assert self.control is not None
        mine, other = socket.socketpair()
        told, tell = os.pipe()
        with other:
            socket.send_fds(self.control, [b"x"], [other.fileno(), tell])
            os.close(tell)
        return Child(mine, os.fdopen(told, "rb"))


_server = _Server()


def begin() -> None:
    """Let the server import while this process does something else."""
    if FORKS:
        with _server.lock:
            _server.begin()


def child() -> Child:
    """A process in which ``worker.serve`` answers."""
    if not FORKS:
        mine, other = socket.socketpair()
        return Child(mine, _started("alone", other, ", worker.serve"))
    with _server.lock:
        _server.begin()
        try:
            return _server.fork()
        except OSError:                                         # it was killed: a new one
            _server.end()
            _server.begin()
            return _server.fork()


def _started(serve: str, other: socket.socket, more: str) -> subprocess.Popen[bytes]:
    path = [*(p for p in sys.path if p), str(ROOT.parent)]
    start = START.format(serve=serve, more=more)
    line = [sys.executable, "-P", "-c", start, json.dumps(path), str(other.fileno())]
    with other:
        return subprocess.Popen(line, pass_fds=[other.fileno()], stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


# ---- in the other processes -------------------------------------------------------------------------


def alone(handle: int, serve: Serve) -> None:
    """A process that is not forked."""
    gc.enable()
    ending.leave_to_parent()
    serve(handle)


def main(handle: int, serve: Serve) -> None:
    """Import, then fork for everybody who asks, and tell how each ended, until nobody can ask any more."""
    ending.leave_to_parent()
    for module in (*MODULES, *METHODS):
        with contextlib.suppress(Exception):                    # whoever needs it is told
            file = importlib.import_module(module).__file__
            if module in METHODS and file is not None:
                identity.code(Path(file))
    gc.collect()
    gc.freeze()                                                 # what is not touched is not copied
    gc.enable()
    control = socket.socket(fileno=handle)
    heard, wake = socket.socketpair()
    heard.setblocking(False)
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    running: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([control, heard], [], [])
        if heard in ready:
            heard.recv(4096)
            _reap(running)
        if control in ready:
            asked, given, _, _ = socket.recv_fds(control, 1, 2)
            if not asked:
                return
            talk, status = given
            pid = os.fork()
            if not pid:
                for one in (control, heard, wake):
                    one.close()
                for other in (status, *running.values()):
                    os.close(other)
                _child(talk, serve)
            os.close(talk)
            os.write(status, f"{pid}\n".encode())
            running[pid] = status


def _reap(running: dict[int, int]) -> None:
    for pid in list(running):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with contextlib.suppress(BrokenPipeError):          # nobody wants to know
                os.write(running[pid], f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os.close(running.pop(pid))


_forked_from = 0


def untouched() -> float:
    """Bytes of libraries that were read for this process and that it has not used so far: one that imports
    them itself, as a run does, has them in its memory. 0 where it was not forked."""
    if not _forked_from or os.getppid() != _forked_from:
        return 0.0
    return max(0.0, _library_bytes(_forked_from) - _library_bytes(os.getpid()))


def _library_bytes(pid: int) -> float:
    """Of files, mapped and in use."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return float(status.partition("RssFile:")[2].split()[0]) * 1024


def _child(talk: int, serve: Serve) -> None:
    """What a forked process does; it never comes back."""
    global _forked_from
    try:
        _forked_from = os.getppid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        serve(talk)
    finally:
        os._exit(1)
