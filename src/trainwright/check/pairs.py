"""Every two methods that may share a training stage: they work together, or are refused with a reason.

A pair works if it trains three steps on the tiny stage of the battery, and comes to the same weights, states
and rows, to the bit, when it is interrupted after the second. ``python -m trainwright.check.pairs OUT.json``
tries all of them.
"""
from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch

from trainwright.check import tiny
from trainwright.check.battery import absent
from trainwright.check.laws import TRAINS, copied, difference, timeless
from trainwright.check.subject import load, reported, weights
from trainwright.core import checkpoint, registry
from trainwright.core.errors import UserError
from trainwright.core.loop import Diverged, Stopped, Train
from trainwright.core.method import Data, Method, Objective, Optimizer, Surgery

UNTIL, CUT = 3, 2


Verdict = Literal["works", "refused", "refused late", "broken"]
"""``refused`` is said before the first step, ``refused late`` by what first acts in the run or stops it as
failed; ``broken`` is everything else."""


class Pair(NamedTuple):
    """Two methods and what came of them: ``why`` is the reason of a refusal, or what broke."""

    a: str
    b: str
    verdict: Verdict
    why: str = ""


def methods() -> list[str]:
    """The installed methods that a training stage takes and that can run here."""
    return [name for name in registry.cards() if issubclass(cls := load(name), TRAINS) and not absent(cls)]


def couples(names: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """All pairs, each once."""
    return list(itertools.combinations(sorted(methods() if names is None else names), 2))


def sample(many: int, seed: int) -> list[tuple[str, str]]:
    """Some of the pairs, other ones with another seed."""
    every = couples()
    return random.Random(seed).sample(every, min(many, len(every)))


def stage(a: Method, b: Method, folder: Path, saved: Path | None = None) -> Train:
    """The tiny stage with both: what a recipe would write that names the two and leaves the rest to the
    defaults."""
    both = [*tiny.company(a), *tiny.company(b), a, b]
    data = sorted((m for m in both if isinstance(m, Data)), key=lambda m: tiny.pulls(m, folder))
    if not data or tiny.pulls(data[0], folder):
        data.insert(0, tiny.default("Data"))                                # type: ignore[arg-type]
    objectives: list[Method] = [m for m in both if isinstance(m, Objective)] or [tiny.default("Objective")]
    optimizers: list[Any] = [m for m in both if isinstance(m, Optimizer)] or [tiny.default("Optimizer")]
    if len(optimizers) == 1 and optimizers[0].params != "*" and not isinstance(optimizers[0], Surgery):
        on = optimizers[0].params
        optimizers.append(tiny.default("Optimizer", params=on[1:] if on.startswith("!") else f"!{on}"))
    rest = [m for m in both if not isinstance(m, (Data, Objective, Optimizer))]
    ordered = {
        id(m): m for m in (*data, *objectives, *optimizers, *rest)
    }  # one of two kinds (data, objective) stands once
    return tiny.built(list(ordered.values()), folder, accumulate=2, eval_every=CUT, saved=saved)


def outcome(a: str, b: str) -> Pair:
    """What becomes of two methods in one stage."""
    with tempfile.TemporaryDirectory() as place:
        folder, rows = Path(place), list[dict[str, float]]()
        verdict: Verdict = "refused"
        try:
            whole = stage(_make(a), _make(b), folder)
            verdict = "refused late"
            whole.run(until=CUT, on_step=lambda row: rows.append(timeless(row)))
            checkpoint.save(whole, folder / "checkpoints", {})
            whole.run(until=UNTIL, on_step=lambda row: rows.append(timeless(row)))
        except Diverged as error:
            return Pair(a, b, verdict if isinstance(error, Stopped) else "broken", str(error))
        except UserError as error:
            return Pair(a, b, verdict, str(error))
        except Exception as error:
            return Pair(a, b, "broken", reported(error))
        try:
            problem = _resumes(whole, rows, (a, b), folder)
        except Exception as error:                              # a sentence, too: what ran must run again
            problem = reported(error)
        return Pair(a, b, "broken" if problem else "works", problem)


def _make(use: str) -> Method:
    return registry.create({"use": use, **load(use).example}, Path(), tiny.WHERE)


def _resumes(whole: Train, rows: list[dict[str, float]], uses: tuple[str, str], folder: Path) -> str:
    """How the end differs that is reached from what was saved; empty where it does not."""
    path, _ = checkpoint.newest(folder / "checkpoints")
    assert path is not None
    again = stage(_make(uses[0]), _make(uses[1]), folder, saved=path)
    last: list[dict[str, float]] = []
    again.run(until=UNTIL, on_step=lambda row: last.append(timeless(row)))
    found = {
        "weights": (weights(whole), weights(again)),
        "states": (copied(whole.states), copied(again.states)),
        "rows": (rows[CUT:], last),
    }
    for what, (one, other) in found.items():
        if at := difference(one, other):
            return f"interrupted, it ends with other {what} ({at})"
    return ""


def try_all(pairs: Sequence[tuple[str, str]], processes: int = 1) -> list[Pair]:
    """What becomes of each pair."""
    if processes == 1:
        return [outcome(a, b) for a, b in pairs]
    with multiprocessing.get_context("spawn").Pool(processes, _one_thread) as pool:
        return pool.starmap(outcome, pairs, chunksize=8)


def _one_thread() -> None:
    torch.set_num_threads(1)


def main(out: Path) -> int:
    """Try all pairs and write what came of them; returns how many broke."""
    found = try_all(couples(), os.cpu_count() or 1)
    out.write_text(
        json.dumps([list(p) for p in found], indent=0, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    counts = {v: sum(p.verdict == v for p in found) for v in get_args(Verdict)}
    print(f"{len(found):,} pairs: " + ", ".join(f"{v} {n:,}" for v, n in counts.items()))
    for p in found:
        if p.verdict == "broken":
            print(f"  {p.a} + {p.b}: {p.why}")
    return int(counts["broken"])


if __name__ == "__main__":
    sys.exit(1 if main(Path(sys.argv[1])) else 0)
