"""How soon commands that start many processes are done, where these are forked and where each starts anew.

    python benchmarks/starts.py [COMMAND ...] [--pairs 3] [--out FILE]

"anew" is the same program, told that it may not fork: as on systems other than Linux, and as everywhere
before there was a process to fork from, each process begins with an empty Python and imports what it needs.
Both run in turn, each command in a process of its own:

plan     ``plan recipes/finetune_smollm2.toml``, whose stages are tried in processes
dry run  ``compare recipes/compare_adapters.toml --dry-run``: the costs of a step of four arms
compare  the same comparison with trials and runs of two steps each, two at a time: all of its processes, and
         nearly nothing of its training; corpus and model are there before

Told are seconds to the end and to the first thing that a terminal shows, the ratios forked / anew, and
whether the numbers that a comparison ends with are the same. Each command takes some minutes and may be timed
alone: what the file has of the others is kept.
"""
from __future__ import annotations

import argparse
import contextlib
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

RECIPES = Path(__file__).parents[1] / "recipes"
SHORT = ["--budget", "tokens=4096", "--seeds", "2", "--jobs", "2", "--set", "base.tokens=40960"]
COMMANDS = {
    "plan": ["plan", str(RECIPES / "finetune_smollm2.toml")],
    "dry run": ["compare", str(RECIPES / "compare_adapters.toml"), "--dry-run"],
    "compare": ["compare", str(RECIPES / "compare_adapters.toml"), *SHORT],
}
KEPT = ("corpus-*", "base-*", "caches", "cache")
"""What a store has before a command is timed."""
START = """import sys
from trainwright.planning import forkserver
forkserver.FORKS = forkserver.FORKS and {forks}
from trainwright import cli
cli.main()"""
SIDES = {"anew": False, "forked": True}


def command(side: str, words: list[str], store: Path) -> dict[str, float]:
    """Run a command to its end; seconds until then, and until something is printed."""
    around = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, "-c", START.format(forks=SIDES[side]), *words, "--store", str(store)]
    ours, theirs = os.openpty()
    began = time.perf_counter()
    with subprocess.Popen(line, cwd=store.parent, env=around, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = os.read(ours, 1)
        first = time.perf_counter() - began
        with contextlib.suppress(OSError):              # the end of a terminal
            while more := os.read(ours, 1 << 16):
                said += more
        os.close(ours)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}, {side}:\n{said.decode()[-2000:]}")
    return {"seconds": time.perf_counter() - began, "first": first}


def numbers(store: Path) -> list[Any]:
    """What the comparisons of a store came to."""
    found = [json.loads(f.read_text()) for f in sorted(store.rglob("result.json"))]
    return [[(r["arm"], r["metric"], r["values"], r["baseline_values"]) for r in result["comparisons"]
             if r["metric"].startswith("loss")] for result in found]


def prepared(folder: Path) -> Path:
    """A store with what the commands begin with, and nothing else."""
    whole, kept = folder / "whole", folder / "kept"
    for words in COMMANDS.values():
        command("forked", words, whole)
    kept.mkdir()
    for pattern in KEPT:
        for one in whole.glob(pattern):
            shutil.copytree(one, kept / one.name, symlinks=True)
    shutil.rmtree(whole)
    return kept


def compared(what: str, kept: Path, pairs: int, folder: Path) -> dict[str, Any]:
    """One command in both ways, in turn."""
    took: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    ends: dict[str, Any] = {}
    for i in range(pairs):
        for side in (list(SIDES), list(SIDES)[::-1])[i % 2]:
            store = folder / "store"
            shutil.copytree(kept, store, symlinks=True)
            took[side].append(command(side, COMMANDS[what], store))
            ends[side] = numbers(store)
            shutil.rmtree(store)
    row: dict[str, Any] = {"what": what, "same_numbers": ends["anew"] == ends["forked"]}
    for side, runs in took.items():
        row |= {f"{side}_{n}": statistics.median(run[n] for run in runs) for n in ("seconds", "first")}
    row |= spread([f["seconds"] / a["seconds"] for f, a in zip(took["forked"], took["anew"], strict=True)])
    say(f"{what:8} forked {row['forked_seconds']:6.1f} s, the first word after {row['forked_first']:4.1f} s; "
        f"anew {row['anew_seconds']:6.1f} s, {row['anew_first']:4.1f} s; ratio {row['ratio']:.2f} "
        f"[{row['low']:.2f}, {row['high']:.2f}]"
        + ("" if what != "compare" else f"  numbers {'the same' if row['same_numbers'] else 'DIFFER'}"))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commands", nargs="*", choices=[*COMMANDS, []], help="only these")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each command on each side")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    results = facts()
    known = json.loads(given.out.read_text())["rows"] if given.out and given.out.is_file() else []
    say(f"{results['hardware']}")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        kept = prepared(folder)
        for what in given.commands or COMMANDS:
            row = compared(what, kept, given.pairs, folder)
            known = [*(r for r in known if r["what"] != what), row]
            if given.out:
                given.out.write_text(json.dumps(results | {"rows": known}, indent=1) + "\n")


if __name__ == "__main__":
    main()
