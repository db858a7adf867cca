"""What `trainwright plan` predicts against what the stage then takes: peak memory, and seconds of all steps.

    python benchmarks/plan.py [WAY ...] [--rounds 3] [--quick] [--out benchmarks/results/plan.json]

Full training, LoRA, activation checkpointing and accumulation, full training and LoRA compiled, on models of
1, 10 and 30 M parameters and rows of 128 and 512 tokens of real text. Each plan and each stage has a process
of its own; nothing is shared but the corpus, the models that LoRA starts from, which are made once, and the
code that torch compiled for the plan. An error is predicted / measured - 1; of each stage it is the median
of its rounds, each with a plan and a run of its own, since either may meet another process, or an allocator
that keeps more. Three quarters of an hour on two quiet CPU cores.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from trainwright.core import hardware
from trainwright.storage.versions import describe

SIZES = {  # hidden, intermediate, layers, heads; tokens and number of the steps
    "1M": (128, 352, 4, 4, 8192, 8), "10M": (320, 864, 6, 5, 4096, 5), "30M": (512, 1376, 8, 8, 2048, 4)}
LENGTHS = (128, 512)
WAYS = {"full": {}, "checkpointing": {"checkpointing": True}, "accumulate": {"accumulate": 4}, "lora": {},
        "compiled": {"compile": True}, "compiled-lora": {"compile": True}}
"""Settings of a stage."""
VOCABULARY = 8192
CORPUS = f"""[[stage]]
name = "corpus"
kind = "corpus"
vocab_size = {VOCABULARY}
methods = [{{ use = "python_library", megabytes = 2.0 }}]
"""
PLAN = """
import json, sys
import trainwright as tw
from pathlib import Path
stages = tw.plan(tw.load(sys.argv[1]), sys.argv[2]).stages
print(json.dumps({s.job.stage.name: s.figures for s in stages if not s.cached}))
"""


def base(size: str) -> str:
    """The model that LoRA starts from: a step old."""
    return stage(f"base{size}", size, 128, "full", {"steps": 1})


def stage(name: str, size: str, length: int, way: str, more: dict[str, Any]) -> str:
    hidden, inner, layers, heads, tokens, _ = SIZES[size]
    model = (
        f'model = {{ type = "llama", hidden_size = {hidden}, intermediate_size = {inner}, '
        f"num_hidden_layers = {layers}, num_attention_heads = {heads}, "
        f"max_position_embeddings = 512, tie_word_embeddings = true }}"
    )
    adapter = ['{ use = "lora", rank = 8 }'] if way.endswith("lora") else []
    methods = [
        f'{{ use = "pack", length = {length} }}',
        '{ use = "next_token" }',
        *adapter,
        '{ use = "clip_gradients" }',
        '{ use = "adamw", lr = 1e-3 }',
    ]
    source = (
        f'from = {{ data = "corpus", model = "base{size}" }}'
        if way.endswith("lora")
        else f'from = {{ data = "corpus" }}\n{model}'
    )
    settings = {"batch_tokens": tokens, **more}
    lines = [f"{k} = {json.dumps(v)}" for k, v in settings.items()]
    return "\n".join(
        [
            "[[stage]]",
            f'name = "{name}"',
            'kind = "train"',
            source,
            *lines,
            f"methods = [{', '.join(methods)}]",
            "",
        ]
    )


def name_of(size: str, length: int, way: str) -> str:
    return f"{way}-{size}-{length}"


def case(size: str, length: int, way: str) -> str:
    return stage(name_of(size, length, way), size, length, way, WAYS[way] | {"steps": SIZES[size][-1]})


def run(folder: Path, text: str) -> None:
    """A recipe, in a process of its own."""
    (folder / "recipe.toml").write_text(text)
    words = [sys.executable, "-m", "trainwright", "run", "recipe.toml", "--store", "store"]
    # what was written before is not charged to what comes
    os.sync()
    subprocess.run(words, cwd=folder, check=True, capture_output=True)


def measured(folder: Path, text: str, name: str) -> dict[str, float]:
    """Peak memory and seconds of the stage, as its manifest has them."""
    run(folder, text)
    (file,) = folder.glob(f"store/{name}-*/manifest.json")
    figures: dict[str, float] = json.loads(file.read_text())["figures"]
    shutil.rmtree(file.parent)
    return figures


def planned(folder: Path, text: str) -> dict[str, dict[str, float]]:
    """The figures of all stages to run, from one process."""
    (folder / "planned.toml").write_text(text)
    words = [sys.executable, "-c", PLAN, "planned.toml", "store"]
    os.sync()
    out = subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True)
    figures: dict[str, dict[str, float]] = json.loads(out.stdout.splitlines()[-1])
    return figures


def compared(
    size: str, length: int, way: str, pairs: list[tuple[dict[str, float], dict[str, float]]]
) -> dict[str, Any]:
    """What was predicted and what was measured in each round, and the median of the errors."""
    row: dict[str, Any] = {"size": size, "length": length, "way": way}
    said = []
    for what, mine, theirs, unit in (("memory", "memory_bytes", "peak_memory_bytes", 2**20),
                                     ("seconds", "seconds", "seconds", 1)):
        predicted, actual = [told[mine] for told, _ in pairs], [found[theirs] for _, found in pairs]
        error = statistics.median(p / a - 1 for p, a in zip(predicted, actual, strict=True))
        row |= {f"{what}_predicted": predicted, f"{what}_measured": actual, f"{what}_error": error}
        middle = [statistics.median(values) / unit for values in (predicted, actual)]
        said.append(f"{what} {middle[0]:8,.1f}, measured {middle[1]:8,.1f} ({error:+7.1%})")
    print(f"{size:>4} {length:4} {way:14} {'   '.join(said)}", flush=True)
    return row


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The median and the worst of the errors' sizes, and the median of the errors with their sign."""
    out = {}
    for what in ("memory", "seconds"):
        errors = [r[f"{what}_error"] for r in rows]
        sizes = [abs(e) for e in errors]
        out[what] = {
            "median": statistics.median(sizes),
            "worst": max(sizes),
            "bias": statistics.median(errors),
        }
    return out


def cell(folder: Path, size: str, length: int, ways: list[str], rounds: int) -> list[dict[str, Any]]:
    """The stages of one model and one length of rows, round by round: a plan of all of them, then each."""
    ways = [w for w in ways if w != "accumulate" or length == LENGTHS[0]]
    pairs: dict[str, list[tuple[dict[str, float], dict[str, float]]]] = {way: [] for way in ways}
    for _ in range(rounds):
        told = planned(folder, CORPUS + base(size) + "".join(case(size, length, w) for w in ways))
        for way in ways:
            name = name_of(size, length, way)
            pairs[way].append(
                (told[name], measured(folder, CORPUS + base(size) + case(size, length, way), name))
            )
    return [compared(size, length, way, found) for way, found in pairs.items()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ways", nargs="*", metavar="WAY", help=f"of {', '.join(WAYS)}; all of them")
    parser.add_argument("--rounds", type=int, default=3, help="plans and runs of each stage")
    parser.add_argument("--quick", action="store_true", help="two cases: to see that it runs")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    if wrong := [w for w in given.ways if w not in WAYS]:
        parser.error(f"{', '.join(wrong)}: there is only {', '.join(WAYS)}")
    # an exception, so that what was started ends, too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    facts = {
        "date": datetime.date.today().isoformat(),
        "hardware": describe(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "precision": hardware.best_precision(),
        "rounds": given.rounds,
        "command": " ".join(sys.argv),
    }
    print(f"{facts['hardware']}, torch {facts['torch']}, {facts['precision']}", flush=True)
    cells = [("1M", 128)] if given.quick else [(s, n) for s in SIZES for n in LENGTHS]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        run(folder, CORPUS + "".join(base(s) for s in dict.fromkeys(s for s, _ in cells)))
        for size, length in cells:
            ways = ["full", "lora"] if given.quick else given.ways or list(WAYS)
            rows += cell(folder, size, length, ways, given.rounds)
            # what was measured is kept if the rest is not
            if given.out:
                given.out.write_text(
                    json.dumps(facts | {"errors": summary(rows), "cases": rows}, indent=1) + "\n"
                )
    for what, told in summary(rows).items():
        print(f"{what:8} error: median {told['median']:.1%}, worst {told['worst']:.1%}, "
              f"median with its sign {told['bias']:+.1%}, {len(rows)} cases")


if __name__ == "__main__":
    main()
