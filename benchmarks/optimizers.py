"""How many times fewer tokens does an optimizer need than AdamW for the same loss? ``recipes/
fantastic_optimizers.toml`` at two sizes of model and two budgets of tokens, everything tuned anew at each.

    python benchmarks/optimizers.py [PAPER] [--seeds 5] [--store DIR] --out FILE

The factors, their intervals over the seeds, and what tuning chose are printed and written, and so are pairs
of numbers, one a seed, which ``trainwright reproduce fantastic-optimizers`` judges: the mean logarithm of the
factors of the matrix optimizers (Muon, SOAP, Kron) over both budgets, at the larger size and at the smaller.
An interrupted run goes on where it was. About ten minutes on a quiet CPU core, an hour on a busy one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from trainwright.compare import spec
from trainwright.compare.arms import Length
from trainwright.compare.compare import Comparison
from trainwright.compare.execute import Record, Watch
from trainwright.compare.speed_up import SpeedUp, of_results, sentence
from trainwright.storage.store import Store
from trainwright.storage.versions import describe, versions

RECIPE = Path(__file__).parents[1] / "recipes" / "fantastic_optimizers.toml"
SIZES: dict[str, dict[str, Any]] = {
    "smaller": {},
    "larger": {"base.model.hidden_size": 64, "base.model.intermediate_size": 176},
}
BUDGETS = (24_576, 49_152)
MATRIX = ("Muon", "SOAP", "Kron")
"""Optimizers of the study that multiply a gradient by matrices."""


class Losses(Comparison):
    """A comparison that leaves out what a step costs: to measure it takes a process for each arm, which is
    more than its runs, and a budget in tokens does not ask."""

    def _measure_costs(self) -> dict[str, Length]:
        limit = self.limit(None)
        return {arm.name: Length(limit, self._steps(arm, None), compiled=False) for arm in self.alive()}


class Progress(Watch):
    """Says which run has ended."""

    def done(self, label: str, record: Record) -> None:
        value = record["failed"] or record["numbers"].get("loss/prose")
        print(f"  {label}: {value}", file=sys.stderr, flush=True)


def compare(size: str, tokens: int, seeds: int, store: Store) -> dict[str, Any]:
    """The result of one comparison."""
    print(f"{size}, {tokens:,} tokens", file=sys.stderr, flush=True)
    changes = {"budget": {"tokens": tokens}, "seeds": seeds}
    return Losses(spec.load(RECIPE, changes, (), SIZES[size]), store, Progress()).run()


def kept(result: dict[str, Any]) -> dict[str, Any]:
    """What is worth keeping of a result: every arm's trials, its choice, and the loss of every seed."""
    metric = result["metric"]
    rows = {r["arm"]: r for r in result["comparisons"] if r["metric"] == metric}
    arms = []
    for arm in result["arms"]:
        losses = {str(r["seed"]): r["metrics"].get(metric) for r in arm["runs"]}
        row = rows.get(arm["name"], {})
        arms.append({"name": arm["name"], "chosen": arm["chosen"], "at_edge": arm["at_edge"],
                     "trials": [[t["values"], t["metric"]] for t in arm["trials"]], metric: losses}
                    | {k: row[k] for k in ("difference", "low", "high", "verdict") if k in row})
    return {"tokens": result["budget"]["amount"], "arms": arms}


def means(found: Sequence[SpeedUp]) -> list[float]:
    """The mean logarithm of the matrix optimizers' factors, one a seed."""
    seeds = zip(*(one.by_seed for one in found if one.arm in MATRIX), strict=True)
    return [statistics.mean(math.log(f) for f in factors) for factors in seeds]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paper", nargs="?", help="the paper that asks, of which there is one")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--store", type=Path, help="keep the runs there, and go on with those that are there")
    parser.add_argument("--out", type=Path, required=True, help="write the figures as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)                               # matrices this small only wait for a second thread
    start, sizes, by_size = time.perf_counter(), [], {}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(given.store or Path(folder))
        for size in SIZES:
            results = [compare(size, tokens, given.seeds, store) for tokens in BUDGETS]
            found = by_size[size] = of_results(results)
            parameters = results[0]["arms"][0]["parameters"]
            print(f"{parameters:,} parameters", flush=True)
            for one in found:
                print(f"  {sentence(one)}", flush=True)
            sizes.append({"size": size, "parameters": parameters, "speed_up": [asdict(one) for one in found],
                          "comparisons": [kept(r) for r in results]})
    out = {"date": datetime.date.today().isoformat(), "hardware": describe(),
           "command": f"python benchmarks/optimizers.py --seeds {given.seeds} --out FILE",
           "versions": versions(), "sizes": sizes, "arm": means(by_size["larger"]),
           "baseline": means(by_size["smaller"]), "seconds": round(time.perf_counter() - start, 1)}
    given.out.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
