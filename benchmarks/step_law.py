"""The Step Law on real runs at the smallest scale: a grid of rates and batches at four pairs
of parameters and tokens.

    python benchmarks/step_law.py [--quick] [--store DIR] [--out benchmarks/results/step-law.json]

Every run decays to the paper's fixed rate of 1e-5 and is measured on held-out documents. Told are the law
fitted on these runs, with its intervals; how far the run nearest to its suggestion is above the best, on
pairs that the fit had not seen, and the same for the published constants; and on the largest pair, left
out of the fit, real runs with what each law suggests and with the package's settings of before (a rate of
1e-3, steps of 8,192 tokens). About five minutes on two quiet CPU cores; with --store, an interrupted
benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import trainwright as tw
from trainwright.core.context import Context
from trainwright.planning import runs
from trainwright.report import fitted
from trainwright.search.step_law import StepLaw
from trainwright.storage.versions import describe

SIZES = {"small": (64, 176, 2, 2), "large": (128, 352, 3, 4)}
"""Hidden and intermediate size, layers, heads: 0.1 and 0.6 M parameters without embeddings."""
TOKENS, RATES, BATCHES = (40_000, 160_000), (2e-3, 5e-3, 1.25e-2, 3.2e-2), (256, 768, 2304)
LENGTH, FINAL = 128, 1e-5
NEAR = 0.01
"""A grid this coarse has one run or two within the paper's 0.25 % of the best: too few to tell
how flat the bottom is."""


def corpus(quick: bool) -> dict[str, Any]:
    return {"name": "corpus", "kind": "corpus", "vocab_size": 1024,
            "methods": [{"use": "python_library", "megabytes": 0.3 if quick else 2.0}]}


def stage(
    name: str,
    size: str,
    tokens: int,
    adamw: dict[str, Any],
    final: float | None,
    more: list[dict[str, Any]],
    **settings: Any,
) -> dict[str, Any]:
    hidden, inner, layers, heads = SIZES[size]
    model = {"type": "llama", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
             "num_attention_heads": heads, "max_position_embeddings": LENGTH, "tie_word_embeddings": True}
    cosine = {"use": "cosine", "warmup": 0.05} | ({} if final is None else {"final": final})
    methods = [
        {"use": "pack", "length": LENGTH, "domains": ["prose"]},
        {"use": "next_token"},
        {"use": "clip_gradients"},
        {"use": "adamw"} | adamw,
        cosine,
        {"use": "held_out", "domains": ["prose"], "tokens": 20_000, "length": LENGTH},
        *more,
    ]
    return {
        "name": name,
        "kind": "train",
        "from": {"data": "corpus"},
        "model": model,
        "tokens": tokens,
        "compile": False,
        "save_every": 10**9,
        "methods": methods,
    } | settings


def trained(stages: list[dict[str, Any]], quick: bool, store: Path) -> dict[str, Any]:
    return tw.run(tw.load({"title": "Step Law", "stage": [corpus(quick), *stages]}), store)


def grid(quick: bool, store: Path) -> list[runs.Row]:
    """All runs of the grid, as rows. Without --quick: 48 of them, 4.8 M tokens."""
    tokens, rates, batches = ((4096, 16_384), RATES[:3], BATCHES[:2]) if quick else (TOKENS, RATES, BATCHES)
    cells = [(size, d, lr, b) for size in SIZES for d in tokens for lr in rates for b in batches]
    for number, (size, d, lr, b) in enumerate(cells, 1):
        one = stage("grid", size, d, {"lr": lr}, FINAL / lr, [], batch_tokens=b)
        loss = trained([one], quick, store)["grid"].figures["evaluation"]["loss/prose"]
        print(f"{number}/{len(cells)}  {size}, {d:,} tokens, lr {lr:g}, batch {b:,}: {loss:.4f}", flush=True)
    return runs.from_store(tw.Store(store), scratch=True, stage="grid")[0]


def arms(rows: list[runs.Row], quick: bool, store: Path) -> dict[str, dict[str, float]]:
    """The largest pair: the best run of its grid, and runs with what two laws and no law say of it."""
    size, d = max(r["parameters"] for r in rows), max(r["tokens"] for r in rows)
    mine = [r for r in rows if (r["parameters"], r["tokens"]) == (size, d)]
    law = runs.fitted(
        StepLaw(near=NEAR), [r for r in rows if r not in mine], Context(), "the other pairs"
    ).law
    best = min(mine, key=lambda r: r["loss"])
    out = {"best of its grid": {n: best[n] for n in ("lr", "batch_tokens", "loss")}}
    own = {f: list(v) if isinstance(v, tuple) else v for f, v in vars(law).items()}
    stages = {
        "published law": stage("published", "large", d, {}, None, [{"use": "step_law"}]),
        "law fitted on the others": stage("fitted", "large", d, {}, None, [{"use": "step_law"} | own]),
        "settings of before": stage(
            "before", "large", d, {"lr": 1e-3}, 0.1, [], batch_tokens=8192 if d > 8192 else 2048
        ),
    }
    for name, table in stages.items():
        artifact = trained([table], quick, store)[table["name"]]
        settings = artifact.manifest["settings"]
        lr = next(m["lr"] for m in settings["methods"] if m["use"] == "adamw")
        out[name] = {
            "lr": lr,
            "batch_tokens": settings["batch_tokens"],
            "loss": artifact.figures["evaluation"]["loss/prose"],
        }
    for name, told in out.items():
        told["percent_above"] = 100 * (told["loss"] / best["loss"] - 1)
        print(f"{name}: lr {told['lr']:.4g}, batch {told['batch_tokens']:,.0f}, loss {told['loss']:.4f} "
              f"({told['percent_above']:+.2f} %)", flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small and few: to see that it runs")
    parser.add_argument("--store", type=Path, help="keep the runs there, and go on with those that are there")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)                               # matrices this small only wait for a second thread
    with tempfile.TemporaryDirectory() as folder:
        store = given.store or Path(folder)
        rows = grid(given.quick, store)
        fit = runs.fitted(StepLaw(near=NEAR), rows, Context(), "the grid")
        Console().print(fitted.render(fit, StepLaw(), {}, len(rows), []), soft_wrap=True)
        spread = runs.intervals(fit)
        results = {
            "date": datetime.date.today().isoformat(),
            "hardware": describe(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "command": " ".join(sys.argv),
            "constants": {n: getattr(fit.law, n) for n in spread},
            "intervals": spread,
            "errors": fit.errors,
            "notes": fit.notes,
            "largest": arms(rows, given.quick, store),
            "rows": [{n: r[n] for n in StepLaw.columns} for r in rows],
        }
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
