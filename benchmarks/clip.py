"""CLIP at the smallest scale: are captions and pictures found, and classes named, more often than by chance?

    python benchmarks/fetch.py stamps
    python benchmarks/clip.py [--seeds 5] [--store DIR] [--out benchmarks/results/clip.json]

Runs ``recipes/clip.toml`` once for each seed: the pictures and their split stay, the weights at the start and
the order of the pairs change. Told are, for each number that has a chance level, its mean over the seeds, the
chance level, and the 95 % t-interval of the difference. The seeds share the held-out pictures: the
interval is that of the training, not of the choice of pictures. With --store, an interrupted
benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import trainwright as tw
from trainwright.compare.statistics import paired
from trainwright.storage.versions import describe

RECIPE = Path(__file__).parents[1] / "recipes" / "clip.toml"
STAGE = "clip"
MEASURED = {"recall": "chance", "accuracy": "chance"}
"""Metrics and what their chance level is called."""


def measured(seed: int, store: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """The numbers and the figures of the run of one seed."""
    recipe = tw.load(RECIPE)
    stages = tuple(dataclasses.replace(s, seed=seed) if s.name == STAGE else s for s in recipe.stages)
    made = tw.run(dataclasses.replace(recipe, stages=stages), store)[STAGE]
    return made.figures["evaluation"], made.figures


def against_chance(runs: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Of each number that has a chance level: means over the runs, and the interval of the difference."""
    found: dict[str, dict[str, Any]] = {}
    for name in runs[0]:
        metric, _, rest = name.partition("/")
        level = f"{MEASURED.get(metric, '')}/{rest}"
        if level not in runs[0]:
            continue
        above = paired([run[name] - run[level] for run in runs])
        found[name] = {
            "mean": statistics.fmean(run[name] for run in runs), "seeds": [run[name] for run in runs],
            "chance": statistics.fmean(run[level] for run in runs), "difference": above.difference,
            "low": above.low, "high": above.high, "above chance": above.low > 0}
    return found


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        runs = [measured(seed, given.store or Path(place)) for seed in range(given.seeds)]
    numbers, figures = [found for found, _ in runs], [f for _, f in runs]
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(), "hardware": describe(),
        "python": platform.python_version(), "torch": torch.__version__, "command": " ".join(sys.argv),
        "recipe": f"recipes/{RECIPE.name}", "parameters": figures[0]["parameters"],
        "seconds": [f["wall_seconds"] for f in figures], "against_chance": against_chance(numbers),
        "classes": {n: statistics.fmean(run[n] for run in numbers) for n in numbers[0]
                    if n.startswith("accuracy/") and n.partition("/")[2] not in ("all", "mean")}}
    for name, one in results["against_chance"].items():
        print(
            f"{name:26} {one['mean']:.3f}   chance {one['chance']:.3f}   difference {one['difference']:+.3f} "
            f"[{one['low']:+.3f}, {one['high']:+.3f}]"
        )
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
