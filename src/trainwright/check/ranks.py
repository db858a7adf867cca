"""The law of the ranks: the same stage on two processes comes to the weights of one.

All methods in one start of two processes, since to start takes seconds. Nothing here is judged by the clock
on the wall: two processes stand still if they use no processor time and write nothing, however busy the
machine is.
"""
from __future__ import annotations

import json
import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainwright.check import tiny
from trainwright.check.laws import key_of
from trainwright.check.subject import load, reported
from trainwright.core import registry, sharding
from trainwright.core.errors import UserError
from trainwright.planning.worker import Died, Worker

RANKS = "two_ranks_make_one_run"
ENDED = "on two processes: "
"""With this begins what ends both of them."""
CLOSE = 1e-5
"""How far weights on two ranks may be from those on one: sums are taken in another order."""
UNTIL = 3
"""Steps of the runs."""
LOOK = 2.0
"""Seconds between two looks at the processes."""
STILL = 30
"""Looks in a row without progress after which they stand still."""
IDLE = 0.02
"""Processor seconds a look up to which two processes only wait for each other."""
ENDLESS = 600.0
"""Processor seconds for one method after which it is taken to have no end."""


def check_ranks(methods: list[str]) -> dict[str, str]:
    """For each method what makes two processes come to other weights than one; empty where they agree."""
    found: dict[str, str] = {}
    while left := [m for m in methods if m not in found]:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "found.jsonl"
            why = start(left, out)
            told = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
        for name, problem in told:
            found.setdefault(name, problem)     # what one process says first is the cause of the other's
        hung = next((m for m in left if m not in found), None)
        if hung is not None and not any(problem.startswith(ENDED) for _, problem in told):
            # go on behind the one at which the two processes stood still
            found[hung] = f"the two processes came to no end: do both do the same work? {why}".rstrip()
    return found


def start(methods: list[str], out: Path) -> str:
    """Two processes that write a line for each method; returns the end of what they said if they failed."""
    uses = [str(Path(m).resolve()) if m.endswith(".py") else m for m in methods]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        around = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2",
                  "LOCAL_WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(out.parent)}
    with Worker(1) as first, Worker(1) as second:
        both = [first, second]
        for rank, worker in enumerate(both):
            own = around | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            worker.begin(one, own, out, tiny.corpus(), dict(zip(uses, methods, strict=True)))
        watch = Watch(out)
        while both:
            ended = next((worker for worker in both if worker.answered(LOOK / 2)), None)
            if ended is None:
                if why := watch.look([worker.pid for worker in both]):
                    return why
                continue
            try:
                ended.answer()
            except (Died, RuntimeError, UserError) as error:    # the other one waits for it
                return str(error)[-600:]
            both.remove(ended)
    return ""


@dataclass
class Watch:
    """Looks whether two processes get on: they use processor time, or write lines."""

    out: Path
    lines: int = 0
    used: float = 0.0
    since_line: float = 0.0
    still: int = 0

    def look(self, processes: list[int]) -> str:
        """Why they are to be stopped; empty where they get on, or where this system does not tell."""
        used, lines = processor_seconds(processes), self.out.stat().st_size if self.out.is_file() else 0
        if used is None:
            return ""
        moved, self.used = abs(used - self.used), used       # the time of a process that has ended is gone
        self.since_line = 0.0 if lines > self.lines else self.since_line + moved
        self.still = 0 if lines > self.lines or moved > IDLE * LOOK else self.still + 1
        self.lines = lines
        if self.still >= STILL:
            return "They stood still and were stopped."
        return f"They were stopped after {ENDLESS:g} processor seconds." if self.since_line > ENDLESS else ""


def processor_seconds(processes: list[int]) -> float | None:
    """What processes and those that they started have used; None where there is no ``/proc``."""
    parents: dict[int, int] = {}
    used: dict[int, int] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = file.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:                                      # it has ended
            continue
        pid = int(file.parent.name)
        parents[pid], used[pid] = int(words[1]), int(words[11]) + int(words[12])
    if not parents:
        return None
    mine, grown = set(processes), True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in mine} - mine
        mine, grown = mine | more, bool(more)
    return sum(used.get(pid, 0) for pid in mine) / os.sysconf("SC_CLK_TCK")


# ---- in the two processes ----------------------------------------------------------------------------


def one(around: dict[str, str], out: Path, corpus: Path, methods: dict[str, str]) -> None:
    """What one of them does, told which it is as torchrun tells it."""
    os.environ.update(around)
    tempfile.tempdir = None                                         # the environment names another
    tiny.reuse(corpus)
    ranks(out, methods)


def ranks(out: Path, methods: dict[str, str]) -> None:
    """One of the two processes: half of the methods alone first, then all of them together."""
    me = int(os.environ["RANK"])
    alone = {use: outcome(use) for use in list(methods)[me::int(os.environ["WORLD_SIZE"])]}
    sharding.start()
    single = {use: one for part in sharding.gather(alone) for use, one in part.items()}
    for use, name in methods.items():
        if "error" in single[use]:
            write(out, name, f"on one process: {single[use]['error']}")
            continue
        mine = outcome(use)
        if "error" in mine:  # the other process may wait for this one: end both, start anew
            write(out, name, f"{ENDED}{mine['error']}")
            os._exit(1)
        both = sharding.gather(difference(single[use], mine))
        write(out, name, both[0] or both[1])
    sharding.stop()


def write(out: Path, name: str, why: str) -> None:
    with out.open("a") as file:
        file.write(json.dumps([name, why]) + "\n")


def outcome(use: str) -> dict[str, Any]:
    """The weights and numbers of a few steps with the method, on as many ranks as there are."""
    try:
        method = registry.create({"use": use, **load(use).example}, Path(), tiny.WHERE)
        with tempfile.TemporaryDirectory() as folder:
            run = tiny.stage(method, Path(folder), accumulate=2, eval_every=UNTIL)
            run.run(until=UNTIL)
        own = bool(run.states[key_of(run, method)].get("rank"))
        whole = {n: sharding.full(p).detach().clone() for n, p in run.params.items()}
        return {"weights": whole, "numbers": run.evaluation, "own": own}
    except Exception as error:
        return {"error": str(error) if isinstance(error, UserError) else reported(error)}


def difference(one: dict[str, Any], two: dict[str, Any]) -> str:
    """How two processes differ from one."""
    if two["own"]:  # what belongs to single ranks may depend on their number
        return ""
    for name, w in one["weights"].items():
        off = float((w - two["weights"][name]).abs().max())
        if not off <= CLOSE:
            return f"two processes come to another {name} than one does, by {off:.1e}"
    for name, x in one["numbers"].items():
        y = two["numbers"].get(name, float("nan"))
        if not torch.isclose(torch.tensor(x), torch.tensor(y), rtol=1e-4, equal_nan=True):
            return f"two processes measure {name} = {y}, one measures {x}"
    return ""

