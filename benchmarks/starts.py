"""How soon commands that start many processes are done, where these are forked and where each starts anew.

    python benchmarks/starts.py [COMMAND ...] [--pairs 3] [--against CHECKOUT] [--out FILE]

"anew" is the same program, told that it may not fork: as on systems other than Linux, and as everywhere
before there was a process to fork from, each process begins with an empty Python and imports what it needs.
Both run in turn, each command in a process of its own:

plan     ``plan recipes/finetune_smollm2.toml``, whose stages are tried in processes
dry run  ``compare recipes/compare_adapters.toml --dry-run``: the costs of a step of four arms
compare  the same comparison with trials and runs of two steps each, two at a time: all of its processes, and
         nearly nothing of its training; corpus and model are there before
whole    the comparison as it stands, from an empty store: some ten minutes a side, and only where it is named

Told are seconds to the end and to the first thing that a terminal shows, the ratios forked / anew, and how
far the losses that a comparison ends with lie apart. Each command takes some minutes and may be timed alone:
what the file has of the others is kept.

With ``--against`` the other side is the program of another checkout, an older one, with its own recipes; the
row is then named after it.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import facts, say, spread

ROOT = Path(__file__).parents[1]
SHORT = ["--budget", "tokens=4096", "--seeds", "2", "--set", "base.tokens=40960"]
COMMANDS = {
    "plan": ["plan", "finetune_smollm2.toml"],
    "dry run": ["compare", "compare_adapters.toml", "--dry-run"],
    "compare": ["compare", "compare_adapters.toml", *SHORT],
    "whole": ["compare", "compare_adapters.toml"],
}
KEPT = ("corpus-*", "base-*", "caches", "cache")
"""What a store has before a command is timed."""
START = """import sys
from trainwright.planning import forkserver
forkserver.FORKS = forkserver.FORKS and {forks}
from trainwright import cli
cli.main()"""


@dataclass(frozen=True)
class Side:
    """A program: a checkout of this project, and whether it may fork."""

    name: str
    checkout: Path = ROOT
    forks: bool = True

    def line(self, words: list[str], store: Path) -> list[str]:
        """What is run; the second word is a recipe of the checkout."""
        of_it = [words[0], str(self.checkout / "recipes" / words[1]), *words[2:], "--store", str(store)]
        if self.checkout != ROOT:
            return [sys.executable, "-m", "trainwright", *of_it]
        return [sys.executable, "-c", START.format(forks=self.forks), *of_it]


def command(side: Side, words: list[str], store: Path) -> dict[str, float]:
    """Run a command to its end; seconds until then, and until something is printed."""
    around = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1",
                           "PYTHONPATH": str(side.checkout / "src")}
    ours, theirs = os.openpty()
    began = time.perf_counter()
    with subprocess.Popen(side.line(words, store), cwd=store.parent, env=around, stdout=theirs,
                          stderr=theirs) as process:
        os.close(theirs)
        said = os.read(ours, 1)
        first = time.perf_counter() - began
        with contextlib.suppress(OSError):              # the end of a terminal
            while more := os.read(ours, 1 << 16):
                said += more
        os.close(ours)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}, {side.name}:\n{said.decode()[-2000:]}")
    return {"seconds": time.perf_counter() - began, "first": first}


def losses(store: Path) -> dict[tuple[str, str], float]:
    """What a comparison came to: the mean of each arm and each loss, over its seeds."""
    found = [json.loads(f.read_text()) for f in store.rglob("result.json")]
    return {(r["arm"], r["metric"]): statistics.mean(r["values"]) for result in found
            for r in result["comparisons"] if r["metric"].startswith("loss")}


def prepared(folder: Path, sides: list[Side], what: str) -> dict[str, Path]:
    """For each side a store with what the command begins with, and nothing else."""
    out = {}
    for side in sides:
        out[side.name] = kept = folder / f"kept {side.name}"
        kept.mkdir()
        if what == "whole":
            continue
        whole = folder / "made"
        command(side, COMMANDS["compare" if what == "dry run" else what], whole)
        for pattern in KEPT:
            for one in whole.glob(pattern):
                shutil.copytree(one, kept / one.name, symlinks=True)
        shutil.rmtree(whole)
    return out


def compared(what: str, sides: list[Side], pairs: int) -> dict[str, Any]:
    """One command on both sides, in turn."""
    took: dict[str, list[dict[str, float]]] = {side.name: [] for side in sides}
    ends: dict[str, dict[tuple[str, str], float]] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        kept = prepared(folder, sides, what)
        for i in range(pairs):
            for side in (sides, sides[::-1])[i % 2]:
                store = folder / "store"
                shutil.copytree(kept[side.name], store, symlinks=True)
                took[side.name].append(command(side, COMMANDS[what], store))
                ends[side.name] = losses(store)
                shutil.rmtree(store)
    other, own = (side.name for side in sides)
    row: dict[str, Any] = {"what": what, "losses_differ_by": max(
        (abs(v - ends[other][k]) for k, v in ends[own].items() if k in ends[other]), default=0.0)}
    for side, runs in took.items():
        row |= {f"{side}_{n}": statistics.median(run[n] for run in runs) for n in ("seconds", "first")}
    row |= spread([f["seconds"] / a["seconds"] for f, a in zip(took[own], took[other], strict=True)])
    say(f"{what:8} {own} {row[f'{own}_seconds']:6.1f} s, the first word after {row[f'{own}_first']:4.1f} s; "
        f"{other} {row[f'{other}_seconds']:6.1f} s, {row[f'{other}_first']:4.1f} s; ratio {row['ratio']:.2f} "
        f"[{row['low']:.2f}, {row['high']:.2f}]"
        + (f"  losses differ by {row['losses_differ_by']:.1e}" if ends[own] else ""))
    return row


def commit(checkout: Path) -> str:
    """Its short name."""
    words = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commands", nargs="*", choices=[*COMMANDS, []], help="only these")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each command on each side")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="an older one")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    results = facts()
    known = json.loads(given.out.read_text())["rows"] if given.out and given.out.is_file() else []
    say(f"{results['hardware']}")
    other, after = Side("anew", forks=False), ""
    if given.against:
        other = Side("then", given.against.resolve())
        after = f", against {commit(given.against)}"
        results["command"] = results["command"].replace(str(given.against), "CHECKOUT")
    sides = [other, Side("now" if given.against else "forked")]
    for what in given.commands or [c for c in COMMANDS if c != "whole"]:
        row = compared(what, sides, given.pairs)
        row["what"] += after
        known = [*(r for r in known if r["what"] != row["what"]), row]
        if given.out:
            given.out.write_text(json.dumps(results | {"rows": known}, indent=1) + "\n")


if __name__ == "__main__":
    main()
