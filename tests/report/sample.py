"""A run written by hand, with the figures that the quickstart has on two cores."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

VERSIONS = {
    "python": "3.11.7",
    "trainwright": "0.1.0",
    "torch": "2.13.0+cpu",
    "transformers": "5.23.0",
    "tokenizers": "0.23.3",
    "numpy": "2.4.6",
}
RECIPE = """# A first life: a small Llama reads English prose, then Python code.
title = "A first life: prose, then code"
seed = 0

[[stage]]
name = "adapt"
kind = "train"
from = { model = "base", data = "corpus" }
tokens = 600_000                                  # or steps, or epochs
batch_tokens = 4096
methods = [
  { use = "pack", length = 256, domains = ["code"] },
  { use = "next_token" },
  { use = "adamw", lr = 2e-3, weight_decay = 0.1 },
  { use = "wsd", warmup = 0.05 },
]
"""
PLAN = """A first life: prose, then code
adapt (train, to run)
  3 data       -> pack(length=256, domains=('code',))
  4 objective  -> next_token
  5-6 update   -> clip_gradients(norm=1.0) -> adamw(lr=0.002, weight_decay=0.1)"""
SAMPLE = (
    "The function returns the value of the given object, which is used to set\nthe default string "
    "<b>encoding</b>. "
    "If *name* is not None, the file is opened & read again."
)


def manifest(name: str, kind: str, seconds: float, figures: dict[str, Any], **more: Any) -> dict[str, Any]:
    keys = {
        "corpus": "9b2f61c07a3e",
        "base": "41d0c98fe27b",
        "adapt": "e7730a52bc14",
        "merged": "05fa9be6d318",
        "judge": "c2864d7190af",
    }
    sources = {
        "base": {"data": ["corpus"]},
        "adapt": {"model": ["base"], "data": ["corpus"]},
        "merged": {"models": ["base", "adapt"]},
        "judge": {"models": ["base", "adapt", "merged"], "data": ["corpus"]},
    }.get(name, {})
    inputs = {
        role: [{"stage": s, "hash": keys[s], "path": f"store/{s}-{keys[s]}"} for s in names]
        for role, names in sources.items()
    }
    return {
        "stage": name,
        "kind": kind,
        "hash": keys.get(name, "0" * 12),
        "title": "A first life: prose, then code",
        "settings": {"kind": kind, "name": name, "seed": 0},
        "inputs": inputs,
        "versions": VERSIONS,
        "git": "3f9c2ab41d7e5508c6a1",
        "command": "trainwright run recipes/quickstart.toml",
        "started": "2026-11-21T09:14:02+00:00",
        "finished": "2026-11-21T09:15:10.412+00:00",
        "seconds": seconds,
        "figures": figures,
        "texts": {},
    } | more


def rows(
    steps: int,
    start: float,
    end: float,
    held_out: dict[str, tuple[float, float]],
    every: int,
    batch: int = 4096,
) -> list[dict[str, Any]]:
    """A loss curve as ``metrics.jsonl`` has it: a fall, noise, a schedule with warm-up and decay."""
    draw, out = random.Random(steps), []
    for i in range(1, steps + 1):
        part = i / steps
        fall = math.exp(-6 * part) * 0.8 + (1 - part) * 0.2
        factor = min(1.0, i / (0.05 * steps), (1 - part) / 0.3 + 0.01)
        row = {
            "step": i,
            "steps": steps,
            "tokens": i * batch,
            "flops": i * batch * 7.1e6,
            "seconds": i * 0.19,
            "loss": end + (start - end) * fall + draw.gauss(0, 0.06),
            "lr": 4e-3 * factor,
            "tokens_per_second": 21_500 + draw.gauss(0, 400),
            "memory_bytes": 8.7e8,
            "grad_norm": 1.1,
        }
        if i % every == 0 or i == steps:
            row |= {f"eval/loss/{d}": b + (a - b) * fall for d, (a, b) in held_out.items()}
        out.append(row)
    return out


def train(
    folder: Path, name: str, written: list[dict[str, Any]], evaluation: dict[str, float], **more: Any
) -> dict[str, Any]:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in written))
    last = written[-1]
    figures = {
        "steps": last["steps"],
        "tokens": last["tokens"],
        "trained_tokens": last["tokens"] - 3000,
        "flops": last["flops"],
        "seconds": last["seconds"],
        "peak_memory_bytes": 912_000_000,
        "parameters": 1_312_256,
        "trainable_parameters": 1_312_256,
        "state_bytes": 10_498_048,
        "stored_bytes": 5_249_024,
        "loss": last["loss"],
        "evaluation": evaluation,
    }
    return manifest(name, "train", last["seconds"] + 4.1, figures, **more)


def index(folder: Path) -> None:
    """``tokens/index.parquet`` of a corpus."""
    (folder / "tokens").mkdir(parents=True)
    draw, table = random.Random(0), []
    for domain, many, length in (("code", 1480, 1310), ("prose", 5210, 402)):
        for i in range(many):
            split = "test" if i % 50 == 0 else "tune" if i % 100 == 1 else "train"
            table.append(
                {
                    "id": f"{domain}-{i}",
                    "domain": domain,
                    "split": split,
                    "length": int(length * draw.uniform(0.4, 1.6)),
                }
            )
    pq.write_table(pa.Table.from_pylist(table), folder / "tokens" / "index.parquet")


def measure(code: float, prose: float) -> dict[str, float]:
    return {
        "loss/code": code,
        "perplexity/code": math.exp(code),
        "bits_per_byte/code": code * 0.511,
        "loss/prose": prose,
        "perplexity/prose": math.exp(prose),
        "bits_per_byte/prose": prose * 0.468,
    }


def evaluation() -> dict[str, Any]:
    return {
        "numbers": {
            "base": measure(4.912, 4.304),
            "adapt": measure(3.187, 4.861),
            "merged": measure(3.402, 4.473),
        },
        "baseline": "base",
        "old": ["prose"],
        "new": ["code"],
    }


def run(root: Path) -> tuple[list[dict[str, Any]], list[Path]]:
    """Manifests and folders of the five stages of the quickstart."""
    folders = [
        root / f"{n}-{k}"
        for n, k in (
            ("corpus", "9b2f61c07a3e"),
            ("base", "41d0c98fe27b"),
            ("adapt", "e7730a52bc14"),
            ("merged", "05fa9be6d318"),
            ("judge", "c2864d7190af"),
        )
    ]
    for folder in folders:
        folder.mkdir(parents=True)
    index(folders[0])
    base = rows(244, 8.3, 4.25, {"code": (8.3, 4.9), "prose": (8.3, 4.3)}, 60)
    adapt = rows(146, 4.9, 3.15, {"code": (4.9, 3.2), "prose": (4.3, 4.86)}, 40)
    return [
        manifest("corpus", "corpus", 9.4, {"documents": 6690, "tokens": 4_030_000}, state="cached"),
        train(
            folders[1],
            "base",
            base,
            measure(4.912, 4.304),
            state="cached",
            texts={"The function returns": SAMPLE},
        ),
        train(
            folders[2],
            "adapt",
            adapt,
            measure(3.187, 4.861),
            state="finished",
            texts={
                "def main(": "def main(self, args=None):\n    if args is None:\n        return self._name\n "
                             "   raise args"
            },
        ),
        manifest(
            "merged",
            "merge",
            0.4,
            {"models": ["base", "adapt"], "parameters": 1_312_256, "stored_bytes": 5_249_024},
            state="finished",
        ),
        manifest("judge", "evaluate", 3.8, evaluation(), state="finished"),
    ], folders


def repeated(root: Path) -> tuple[list[dict[str, Any]], list[Path]]:
    """A base, two rounds of training and measuring it, and what the last round made, pruned."""
    base, first, second = "base", "loop.1.tune", "loop.2.tune"
    names = [base, first, "loop.1.judge", second, "loop.2.judge", "sparse"]
    folders = [root / name for name in names]
    for folder in folders:
        folder.mkdir(parents=True)
    held_out = {"code": (4.9, 3.2), "prose": (4.3, 4.86)}
    trained = [
        train(folder, name, rows(146, start, end, held_out, 40), measure(end, 4.8), state="finished")
        for folder, name, start, end in (
            (folders[0], base, 8.3, 4.9),
            (folders[1], first, 4.9, 3.6),
            (folders[3], second, 3.6, 3.2),
        )
    ]
    judged = [
        manifest(f"loop.{n}.judge", "evaluate", 3.8, {"numbers": numbers, "baseline": base, "new": ["code"]})
        for n, numbers in (
            (1, {base: measure(4.9, 4.3), first: measure(3.6, 4.6)}),
            (2, {base: measure(4.9, 4.3), second: measure(3.2, 4.7)}),
        )
    ]
    for one in judged:
        one["figures"]["old"] = ["prose"]
    figures = {
        "parameters": 1_312_256,
        "zeros": 524_288,
        "sparsity": 0.5,
        "peak_memory_bytes": 640_000_000,
        "stored_bytes": 5_249_024,
    }
    sparse = manifest("sparse", "transform", 2.1, figures, state="finished") | {
        "settings": {"kind": "transform", "name": "sparse", "methods": [{"use": "wanda"}]},
        "inputs": {"model": [{"stage": second, "hash": "0" * 12, "path": ""}]},
    }
    return [trained[0], trained[1], judged[0], trained[2], judged[1], sparse], folders
