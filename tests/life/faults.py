"""A machine that fails in every kind of stage and in a comparison, in forked processes: ``main`` tells what
came of it.

A life with a stage of each kind is run in three stores, and so is a comparison. ``whole`` is left alone. In
``killed`` a process dies before the 1st, then the 8th, 64th … change of a file in the folder of a stage. In
``full`` no room is left on the disk from the 1st, 8th, 64th … file on that a stage makes there. Each
process goes on where the one before it ended.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import forks
from tests.compare.tiny import fixed_costs
from tests.conftest import write_texts
from tests.hostile.inputs import toml
from tests.hostile.stages import life
from trainwright.compare import costs, estimate
from trainwright.core.recipe import Recipe
from trainwright.planning import plan
from trainwright.planning.plan import Plan
from trainwright.report.comparison import page
from trainwright.storage.store import Store

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
STORE = ".store"
STRIDE = 8
MOST = 60
"""Processes after which something does not get on."""
STAGES = ("corpus", "base", "merged", "judge", "pruned", "rounds.2.tune")
"""One of each kind; the last one is of a round of ``repeat``."""
COMPARED = (
    "compare", "compared.toml", "--stage", "adapt", "--metric", "loss/code", "--seeds", "2", "--arm", "a:",
    "--arm", "b: -adamw, sgd_sai", "--jobs", "1",
)
"""In one process, whose files are those that fail."""
Fault = Callable[[str], None]


def die(event: str) -> None:
    """As a machine that loses its power."""
    os.kill(os.getpid(), signal.SIGKILL)


def no_room(event: str) -> None:
    """As a disk without room, on which files can still be removed."""
    if event in ("open", "os.mkdir"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def faulty(at: dict[str, int], fault: Fault, log: Path) -> Callable[[str, Any], None]:
    """A hook for a fault at the so manieth change of a file in some places, and at every later one in the
    store."""
    seen, broken = dict.fromkeys(at, 0), False

    def hook(event: str, given: Any) -> None:
        nonlocal broken
        if event not in forks.OPERATIONS or (event == "open" and not (given[2] or 0) & WRITING):
            return
        told = " ".join(map(str, given[:2]))
        for place in () if broken else at:
            if place in told:
                seen[place] += 1
                if seen[place] == at[place]:
                    log.write_text(place)
                    broken = True
        if broken and STORE in told:
            fault(event)

    return hook


def until_it_ends(folder: Path, store: str, places: list[str], fault: Fault, words: tuple[str, ...]) -> Any:
    """Run until nothing fails, each process a little longer than the one before; returns where each failed,
    with which code it ended and what it said."""
    at, ends, log, said = dict.fromkeys(places, 1), [], folder / f"{store}.at", folder / f"{store}.log"
    for _ in range(MOST):
        log.unlink(missing_ok=True)
        said.unlink(missing_ok=True)
        pid = forks.fork(folder, store, lambda: sys.addaudithook(faulty(at, fault, log)), words)
        code, where = forks.ended(pid), log.read_text() if log.is_file() else ""
        ends.append({"at": where, "code": code, "said": said.read_text()})
        if not where:
            break
        at[where] *= STRIDE
    return ends


def unprobed(recipe: Recipe, store: Store, probes: Any = None) -> Plan:
    """What a plan knows without steps in another process, which take half a minute."""
    return plan.plan(recipe, store, estimate=False)


def undrawn(folder: Path, result: dict[str, Any]) -> Path:
    """The page of a comparison, without its plots."""
    return folder


def main(folder: Path) -> dict[str, Any]:
    estimate.plan, costs.measure, page.write = unprobed, fixed_costs, undrawn
    write_texts(folder / "texts")
    table = life()
    (folder / "life.toml").write_text(toml(table))
    needed = [s for s in table["stage"] if s["name"] in ("corpus", "base", "adapt")]
    (folder / "compared.toml").write_text(toml(table | {"stage": needed}))
    found = {}
    for what, words, names in (("run", (), STAGES), ("compare", COMPARED, ("adapt",))):
        places = [f"work/{name}-" for name in names] + ["/runs/"] * (what == "compare")
        for name, fault in (("whole", None), ("killed", die), ("full", no_room)):
            found[f"{what} {name}"] = until_it_ends(
                folder, f"{what} {name}{STORE}", places if fault else [], fault or die, words
            )
    return found
