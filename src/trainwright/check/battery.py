"""The conformance battery: every method, ours or an outsider's, held to the laws of its kind on one tiny stage.

``trainwright check ./mine.py`` runs it, and so do our own tests. It knows no method by name.
"""
from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import trainwright.check.laws_of_kinds  # noqa: F401  (it adds to LAWS)
from trainwright.check import tiny
from trainwright.check.laws import LAWS, TRAINS, Broken, Law, key_of
from trainwright.core import registry, sharding
from trainwright.core.errors import UserError
from trainwright.core.method import KINDS, Method

RANKS = "two_ranks_make_one_run"
CLOSE = 1e-5
"""How far weights on two ranks may be from those on one: sums are taken in another order."""
UNTIL = 3


def laws_of(kind: str) -> list[Law]:
    """The laws that may apply to a kind of method, but for that of the ranks (``check_ranks``)."""
    return [law for law in LAWS if issubclass(KINDS[kind], law.kinds)]


def load(use: str) -> type[Method]:
    """The class of a method that is named, or lies in a file."""
    return registry.load(registry.locate(use, Path(), "check"))


def absent(cls: type[Method]) -> str:
    """What the method's example needs and this machine (or any test) has not; empty where nothing is missing."""
    return next((n for n in cls.needs if n == "network" or importlib.util.find_spec(n) is None), "")


def problem(law: Law, use: str, folder: Path) -> str:
    """What breaks the law, in a sentence; empty where it holds."""
    cls = load(use)

    def make() -> Method:
        return registry.create({"use": use, **cls.example}, Path(), tiny.WHERE)
    try:
        law.check(make, folder)
    except (Broken, UserError) as error:
        return str(error)
    except Exception as error:
        return told(error)
    return ""


def told(error: Exception) -> str:
    """An unforeseen error, with the line that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({Path(last.filename).name}:{last.lineno})"


def check_all(methods: list[str] | None) -> Iterator[tuple[str, str, str]]:
    """Hold methods (default: all that are installed) to every law; yields method, law and problem (empty where it holds)."""
    names = list(registry.cards()) if methods is None else methods
    ranked = []
    for name in names:
        cls = load(name)
        if missing := absent(cls):
            yield name, f"skipped: needs {missing}", ""
            continue
        for law in (law for law in LAWS if law.applies(cls)):
            with tempfile.TemporaryDirectory() as folder:
                yield name, law.name, problem(law, name, Path(folder))
        if issubclass(cls, TRAINS):
            ranked.append(name)
    for name, why in check_ranks(ranked).items():
        yield name, RANKS, why


# ---- two ranks: all methods in one start of two processes, since to start takes seconds ----------------------


def check_ranks(methods: list[str]) -> dict[str, str]:
    """For each method what makes two processes come to other weights than one; empty where they agree."""
    found: dict[str, str] = {}
    while left := [m for m in methods if m not in found]:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "found.jsonl"
            said = start_ranks(left, out)
            for line in out.read_text().splitlines() if out.is_file() else ():
                found.setdefault(*json.loads(line))          # what one process says first is the cause of what the other says
        hung = next((m for m in left if m not in found), None)
        if hung is not None:                                 # go on behind the one at which the two processes stood still
            found[hung] = f"the two processes came to no end: do both do the same work? {said}"
    return found


def start_ranks(methods: list[str], out: Path) -> str:
    """Two processes that write a line for each method; returns the end of what they said if they failed."""
    uses = [str(Path(m).resolve()) if m.endswith(".py") else m for m in methods]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = os.pathsep.join(p for p in (str(registry.ROOT.parent), os.environ.get("PYTHONPATH", "")) if p)
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path, "TMPDIR": str(out.parent)}
    pairs = [part for use, name in zip(uses, methods, strict=True) for part in (use, name)]
    command = [*launch, "-m", "trainwright.check.battery", "ranks", str(out), *pairs]
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as both:
        try:
            said = both.communicate(timeout=90 + 5 * len(methods))[1]
        except subprocess.TimeoutExpired:
            both.terminate()                                 # the launcher then stops the two processes itself
            return "They stood still and were stopped."
        return said[-600:] if both.returncode else ""


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
        if "error" in mine:                                  # the other process may wait for this one: end both, start anew
            write(out, name, f"on two processes: {mine['error']}")
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
        return {"error": str(error) if isinstance(error, UserError) else told(error)}


def difference(one: dict[str, Any], two: dict[str, Any]) -> str:
    """How two processes differ from one."""
    if two["own"]:                                           # what belongs to single ranks may depend on their number
        return ""
    for name, w in one["weights"].items():
        off = float((w - two["weights"][name]).abs().max())
        if not off <= CLOSE:
            return f"two processes come to another {name} than one does, by {off:.1e}"
    for name, x in one["numbers"].items():
        if not torch.isclose(torch.tensor(x), torch.tensor(two["numbers"].get(name, float("nan"))), rtol=1e-4, equal_nan=True):
            return f"two processes measure {name} = {two['numbers'].get(name)}, one measures {x}"
    return ""


if __name__ == "__main__":
    given = sys.argv[3:]
    ranks(Path(sys.argv[2]), dict(zip(given[::2], given[1::2], strict=True)))
