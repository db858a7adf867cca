"""How soon commands that start many processes are done, before they were forked from one and since.

    python benchmarks/starts.py BEFORE [--pairs 3] [--out benchmarks/results/starts.json]

BEFORE is a checkout in which each process starts anew:
``git worktree add FOLDER 59e4051^`` makes one. Both sides run in turn, in the same environment, each command
in a process of its own:

plan     ``plan recipes/finetune_smollm2.toml``, whose stages are tried in processes
dry run  ``compare recipes/compare_adapters.toml --dry-run``: the costs of a step of four arms
compare  the same comparison with trials and runs of two steps each, two at a time: all of its processes, and
         nearly nothing of its training; corpus and model are there before

Told are seconds to the end and to the first thing printed, the ratios since / before, and whether the numbers
that a comparison ends with are the same.
"""
from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import facts, say, spread

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
SHORT = ["--budget", "tokens=4096", "--seeds", "2", "--jobs", "2", "--set", "base.tokens=40960"]
COMMANDS = {
    "plan": ["plan", str(RECIPES / "finetune_smollm2.toml")],
    "dry run": ["compare", str(RECIPES / "compare_adapters.toml"), "--dry-run"],
    "compare": ["compare", str(RECIPES / "compare_adapters.toml"), *SHORT],
}
KEPT = ("corpus-*", "base-*", "caches", "cache")
"""What a store has before a command is timed."""


def command(side: Path, words: list[str], store: Path) -> dict[str, float]:
    """Run a command of one side to its end; seconds until then, and until something is printed."""
    around = os.environ | {"PYTHONPATH": str(side / "src"), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, "-m", "trainwright", *words, "--store", str(store)]
    began = time.perf_counter()
    with subprocess.Popen(line, cwd=store.parent, env=around, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        said = process.stdout.read(1)
        first = time.perf_counter() - began
        said += process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(line)} in {side}:\n{said.decode()[-2000:]}")
    return {"seconds": time.perf_counter() - began, "first": first}


def numbers(store: Path) -> list[Any]:
    """What the comparisons of a store came to."""
    found = [json.loads(f.read_text()) for f in sorted(store.rglob("result.json"))]
    return [[(r["arm"], r["metric"], r["values"], r["baseline_values"]) for r in result["comparisons"]
             if r["metric"].startswith("loss")] for result in found]


def prepared(side: Path, folder: Path) -> Path:
    """A store with what the commands begin with, and nothing else."""
    whole, kept = folder / "whole", folder / "kept"
    folder.mkdir()
    for words in COMMANDS.values():
        command(side, words, whole)
    kept.mkdir()
    for pattern in KEPT:
        for one in whole.glob(pattern):
            shutil.copytree(one, kept / one.name, symlinks=True)
    shutil.rmtree(whole)
    return kept


def compared(
    what: str, sides: dict[str, Path], kept: dict[str, Path], pairs: int, folder: Path
) -> dict[str, Any]:
    """One command on both sides, in turn."""
    took: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    ends: dict[str, Any] = {}
    for i in range(pairs):
        for side in (list(sides), list(sides)[::-1])[i % 2]:
            store = folder / "store"
            shutil.copytree(kept[side], store, symlinks=True)
            took[side].append(command(sides[side], COMMANDS[what], store))
            ends[side] = numbers(store)
            shutil.rmtree(store)
    row: dict[str, Any] = {"what": what, "same_numbers": ends["before"] == ends["since"]}
    for side, runs in took.items():
        row |= {f"{side}_{n}": statistics.median(run[n] for run in runs) for n in ("seconds", "first")}
    row |= spread([s["seconds"] / b["seconds"] for s, b in zip(took["since"], took["before"], strict=True)])
    say(f"{what:8} since {row['since_seconds']:6.1f} s, the first word after {row['since_first']:4.1f} s;  "
        f"before {row['before_seconds']:6.1f} s, {row['before_first']:4.1f} s;  ratio {row['ratio']:.2f} "
        f"[{row['low']:.2f}, {row['high']:.2f}]"
        + ("" if what != "compare" else f"  numbers {'the same' if row['same_numbers'] else 'DIFFER'}"))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="a checkout of before")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each command on each side")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    sides = {"before": given.before.resolve(), "since": ROOT}
    results = facts()
    say(f"{results['hardware']}")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        kept = {side: prepared(place, folder / side) for side, place in sides.items()}
        results["rows"] = [compared(what, sides, kept, given.pairs, folder) for what in COMMANDS]
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
