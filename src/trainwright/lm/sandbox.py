"""Programs that a model wrote, run where they can do little harm.

    ran = run("def double(x): return 2 * x", "assert double(3) == 6", Limits(seconds=2))
    ran.how                              # "passed", "failed" or "timeout"

The program, and then its tests, run in a Python of their own (``-I -S``: neither the environment nor
installed packages), in a new session, with limits of time, memory, size of files, open files and processes,
and no variable of the environment. Whatever it has started ends with it. Where the system lets an ordinary
user do so (Linux, user namespaces), the program moreover has

    network     no network, not even this machine's own
    processes   no other process in sight: it can signal none, and the end of its first process ends all
    files       all files read-only, the homes of people hidden, and a small empty place to work in
    user        no rights: where this runs as root, it is somebody else

``Ran.open`` names what of these could not be taken away, and ``warning`` says it in a sentence. A program
passes where it and its tests ran to their end: one that ends the process before (``sys.exit``) has failed.

Not a wall for programs of somebody who means to break in: the kernel is shared, and a program that looks for
the grader in the memory of its own process finds it. For those, take a machine of its own."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from trainwright.core.settings import Count, Seconds

JAIL = Path(__file__).with_name("_jail.py")
PARTS = {
    "network": "the network",
    "processes": "other processes of this user",
    "files": "files that this user may change",
    "user": "the rights of root",
}
MEGABYTE = 1 << 20
LATE = 10.0
"""Seconds beyond a program's own that starting and ending it may take."""
OVER = 124
"""How the jail ends where the program's time was up."""


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    seconds: Seconds = 5.0
    """Of time, whether it computes or sleeps."""
    megabytes: Count = 512
    """Of memory, each process."""
    file_megabytes: Count = 8
    """Of files, all together or, where it has no place of its own, each."""
    processes: Count = 16
    """And threads at once."""


class Ran(NamedTuple):
    """What became of a program."""

    how: Literal["passed", "failed", "timeout"]
    why: str
    """What it failed of, as Python says it; empty elsewhere."""
    open: tuple[str, ...]
    """What could not be taken away from it: some of network, processes, files and user."""


def run(program: str, tests: str = "", limits: Limits | None = None, apart: bool = True) -> Ran:
    """Run a program and then its tests, in one namespace.

    Args:
        apart: without it, nothing but the limits, as on a system that has no user namespaces.
    """
    limits, token = limits or Limits(), secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="trainwright-") as place:
        os.chmod(place, 0o755)
        folder, python = Path(place, "work"), Path(place, "python")
        folder.mkdir(mode=0o700)
        python.mkdir()
        told = {
            "program": program,
            "tests": tests,
            "token": token,
            "folder": str(folder),
            "python": str(python),
            "bytes": limits.megabytes * MEGABYTE,
            "seconds": limits.seconds,
            "file_bytes": limits.file_megabytes * MEGABYTE,
            "processes": limits.processes,
            "apart": apart,
        }
        with open(Path(place, "why"), "w+b") as heard:
            said, code = _held(json.dumps(told).encode(), str(folder), heard, limits.seconds + LATE)
            heard.seek(0)
            why = heard.read(500).decode(errors="replace")
    first, _, rest = said.partition("\n")
    shut = first.removeprefix("shut:").split() if first.startswith("shut:") else []
    still = tuple(part for part in PARTS if part not in shut)
    if rest == token:
        return Ran("passed", "", still)
    if code == OVER:
        return Ran("timeout", "", still)
    return Ran("failed", why or "it ended before its tests did", still)


def warning(still: tuple[str, ...]) -> str:
    """What a person should know of programs that run here; empty where all could be taken away."""
    if not still:
        return ""
    reached = ", ".join(PARTS[part] for part in still)
    return (
        f"the programs can reach {reached}: this system does not let them be taken away (user namespaces "
        "on Linux would)"
    )


def _held(told: bytes, folder: str, heard: BinaryIO, seconds: float) -> tuple[str, int]:
    """What the jail said, and how it ended; it and all of its session are gone afterwards."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(JAIL)],
        stdin=subprocess.PIPE,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=heard,
        env={},
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(told, timeout=seconds)
            code = process.returncode
        except subprocess.TimeoutExpired:
            said, code = b"", OVER
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
    return said[:200].decode(errors="replace"), code
