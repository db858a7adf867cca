"""How costs grow: with the size of a model, with ranks, with text, with shards, and with runs at a time.

    python benchmarks/scale.py [models|ranks|text|shards|jobs ...] [--tiny]
                               [--out benchmarks/results/scale.json]

models  seconds of gradients per token and of an update, FLOPs and memory, of Llamas of 1 to 300 M parameters
ranks   memory of each of 1 to 64 ranks that train 8 billion parameters, predicted without allocating them
text    seconds and peak memory of taking out near-duplicates, and of making tokens, for 20, 80 and 320 MB;
        and what a rank holds of the index
shards  opening a corpus of 1 to 5,000 shards and reading from each, and the descriptors that stay open
jobs    a comparison of six short runs, one, two and four at a time

Each part takes about two minutes on two quiet CPU cores and may run alone: what the file has of the others is
kept. ``docs/scale.md`` reads its figures from there. ``--tiny`` is to see that it runs.
"""
from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import data, loop
from benchmarks.common import facts, say
from trainwright import families
from trainwright.compare import spec as specs
from trainwright.compare.compare import Comparison
from trainwright.compare.execute import Watch
from trainwright.core import flops, hardware, ledger, recipe
from trainwright.core.context import Context
from trainwright.corpus import building, tokens
from trainwright.life.jobs import jobs as jobs_of
from trainwright.life.run import run as run_recipe
from trainwright.planning.predicted import predict
from trainwright.planning.worker import Worker
from trainwright.storage.store import Store

OUT = Path(__file__).parent / "results" / "scale.json"
Row = dict[str, Any]
LENGTH = 256
ROWS = {"1M": 16, "10M": 8, "30M": 8, "100M": 4, "300M": 4}
STEPS = 3


# ---- one model ---------------------------------------------------------------------------------------------


def models(tiny: bool) -> list[Row]:
    """Each size in a process of its own."""
    from benchmarks import scale  # functions of a program cannot be sent elsewhere

    rows = []
    for size in ("tiny", "1M") if tiny else ROWS:
        with Worker() as worker:
            rows.append(worker.ask(scale.model, size, 1 if tiny else ROWS[size]))
        one = rows[-1]
        say(f"{size:>5}  {one['seconds_per_token'] * 1e6:9.1f} us/token  "
            f"{one['flops_per_token'] / one['seconds_per_token'] / 1e9:6.0f} GFLOP/s  "
            f"update {one['update_seconds'] * 1e3:7.1f} ms  peak {one['peak_bytes'] / 2**20:7,.0f} MiB")
    return rows


def model(size: str, rows: int) -> Row:
    """Seconds, FLOPs and memory of steps of so many rows."""
    families.quiet()
    ledger.reset_peak()
    before = ledger.memory()
    run = loop.train(loop.llama(size), hardware.decided("auto"), rows=rows, length=LENGTH)
    run.count_flops = False
    batch = run.pull()
    with flops.counting() as count:
        run.gradients([batch])
    run.step()
    gradients, steps = [], []
    for _ in range(STEPS):
        for took, act in ((gradients, lambda: run.gradients([batch])), (steps, run.step)):
            began = time.perf_counter()
            act()
            took.append(time.perf_counter() - began)
    seconds, whole, many = statistics.median(gradients), statistics.median(steps), rows * LENGTH
    parameters = sum(p.numel() for p in run.params.values())
    return {"size": size, "parameters": parameters, "rows": rows, "tokens_a_row": LENGTH,
            "precision": run.precision, "seconds_per_token": seconds / many,
            "update_seconds": max(0.0, whole - seconds), "flops_per_token": count.flops / many,
            "peak_bytes": ledger.peak_memory() - before}


# ---- many ranks --------------------------------------------------------------------------------------------

LIFE = """title = "Eight billion parameters"
[[stage]]
name = "corpus"
kind = "corpus"
vocab_size = 300
methods = [{{ use = "python_library", megabytes = 0.1 }}]
[[stage]]
name = "base"
kind = "train"
from = {{ data = "corpus" }}
model = {{ type = "llama", hidden_size = {wide}, intermediate_size = {inner}, num_hidden_layers = {deep}, \
num_attention_heads = 32, num_key_value_heads = 8, max_position_embeddings = 8192, vocab_size = 128256 }}
steps = 10
batch_size = 64
accumulate = {parts}
checkpointing = true
precision = "bf16"
compile = false
methods = [{{ use = "pack", length = {length} }}, {{ use = "next_token" }}, {{ use = "clip_gradients" }}, \
{{ use = "adamw", lr = 3e-4 }}]
"""


def ranks(tiny: bool) -> list[Row]:
    rows, shape = [], {"wide": 4096, "inner": 14336, "deep": 32, "length": 4096}
    if tiny:
        shape = {"wide": 64, "inner": 128, "deep": 2, "length": 64}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for many in (1, 8) if tiny else (1, 2, 4, 8, 16, 64):
            (folder / "life.toml").write_text(LIFE.format(**shape, parts=64 // many))
            store = Store(folder / "store")
            job = next(j for j in jobs_of(recipe.load(folder / "life.toml"), store) if j.stage.trains)
            began = time.perf_counter()
            told = predict(job, store, many)
            rows.append({"ranks": many, "parameters": told.parameters, "weights": told.weights,
                         "gradients": told.gradients, "states": told.states, "gathered": told.gathered,
                         "activations": told.activations, "peak": told.peak, "tokens_a_row": shape["length"],
                         "flops_per_token": told.flops_per_token, "seconds": time.perf_counter() - began})
            say(f"{many:5} ranks  {told.peak / 2**30:7.1f} GiB each, of them activations "
                f"{told.activations / 2**30:.1f}")
            gc.collect()
    return rows


# ---- text --------------------------------------------------------------------------------------------------


def text(tiny: bool) -> list[Row]:
    from benchmarks import scale

    rows = []
    with tempfile.TemporaryDirectory() as made:
        for megabytes in (1, 2) if tiny else (20, 80, 320):
            place = Path(made) / str(megabytes)
            count = data.make_table(place, megabytes * 1e6)
            for what in ("minhash", "corpus"):
                with Worker() as worker:                    # a process of its own: its peak counts
                    told = worker.ask(scale.through, what, place)
                rows.append({"what": what, "megabytes": megabytes, "documents": count} | told)
                say(f"{what:8} {megabytes:4} MB, {count:,} documents: {told['seconds']:7.1f} s, peak "
                    f"{told['peak_bytes'] / 2**20:,.0f} MiB")
    return rows


def through(what: str, place: Path) -> Row:
    """A table through near-duplicates, or into tokens."""
    out = place.parent / f"{place.name}-{what}"
    if what == "minhash":
        found = data.through([{"use": "minhash"}], place, out, {})
        return {"seconds": found["seconds"], "peak_bytes": found["peak_bytes"]}
    out.mkdir()
    source = data.create({"use": "text", "paths": [str(place)], "id": "id"})
    settings = building.CorpusSettings(vocab_size=8192, tune=0.0, test=0.0)
    began = time.perf_counter()
    building.build(out, [source], settings, Context(folder=out / "scratch"), out / "cache", lambda line: None)
    seconds, peak = time.perf_counter() - began, ledger.peak_memory()
    gc.collect()
    before = ledger.memory()
    corpus = tokens.Corpus(out)
    held = corpus.select("train")
    return {"seconds": seconds, "peak_bytes": peak, "index_bytes": max(0.0, ledger.memory() - before),
            "tokens": int(held.length.sum())}


# ---- shards ------------------------------------------------------------------------------------------------

TOKENS = 1_000
"""Tokens of a shard here; what is measured does not depend on it."""


def shards(tiny: bool) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        data.make_table(folder / "table", 1e5)
        source = data.create({"use": "text", "paths": [str(folder / "table")], "id": "id"})
        settings = building.CorpusSettings(vocab_size=400, tune=0.0, test=0.0)
        for many in (1, 10) if tiny else (1, 10, 100, 1000, 5000):
            place = folder / f"corpus-{many}"
            place.mkdir()
            building.build(place, [source], settings, Context(folder=place / "scratch"), folder / "cache",
                           lambda line: None)
            for shard in range(many):
                (place / "tokens" / f"{shard:05d}.bin").write_bytes(
                    np.full(TOKENS, shard % 60_000, np.uint16).tobytes())
            rows.append(read(place, many))
    return rows


def read(place: Path, many: int) -> Row:
    """Open a corpus of so many shards and read from all of them, in an order that is drawn."""
    began = time.perf_counter()
    corpus = tokens.Corpus(place)
    opened = time.perf_counter() - began
    order = np.random.default_rng(0).permutation(many)
    took = []
    for _ in range(2):                                      # the first pass, and once more
        began = time.perf_counter()
        for shard in order:
            assert corpus.read(int(shard), 10, 100)[0] == shard % 60_000
        took.append((time.perf_counter() - began) / many)
    row = {"shards": many, "open_seconds": opened, "first_read_seconds": took[0], "read_seconds": took[1],
           "descriptors": len(os.listdir("/proc/self/fd"))}
    say(f"{many:5} shards  open {opened * 1e3:6.1f} ms  a first read {took[0] * 1e6:6.0f} us, once more "
        f"{took[1] * 1e6:6.0f} us  {row['descriptors']} descriptors")
    return row


# ---- runs at a time ----------------------------------------------------------------------------------------

SEEDS, STEPS_A_RUN = 3, 15


def jobs(tiny: bool) -> list[Row]:
    """Two arms and three seeds of the suite of pretraining, without tuning; the corpus is there before."""
    from trainwright.papers import evidence

    arms = [specs.parse_arm("cosine: cosine"), specs.parse_arm("constant: -cosine, constant")]
    changes = {"baseline": "cosine", "tune": {}, "trials": None, "seeds": 2 if tiny else SEEDS}
    spec = specs.load(evidence.SUITES / "pretrain.toml", changes, arms)
    budget = {"tokens": spec.stage_table("base")["batch_tokens"] * (2 if tiny else STEPS_A_RUN)}
    spec = replace(spec, settings=replace(spec.settings, budget=budget))
    if tiny:
        spec.stage_table("corpus")["methods"][0]["megabytes"] = 0.3
    rows = []
    with tempfile.TemporaryDirectory() as made:
        first = Comparison(spec, Store(Path(made) / "before"))
        for arm in spec.arms:
            if before := first.recipes.common(arm):
                run_recipe(before, first.store, Watch())
        for many in (1, 2) if tiny else (1, 2, 4):
            store = Store(shutil.copytree(Path(made) / "before", Path(made) / str(many), symlinks=True))
            began = time.perf_counter()
            Comparison(spec, store, Watch(), many).run()
            rows.append({"jobs": many, "runs": 2 * spec.settings.seeds, "cores": data.cores(),
                         "seconds": time.perf_counter() - began})
            say(f"{many} at a time  {rows[-1]['runs']} runs in {rows[-1]['seconds']:6.1f} s")
    return rows


PARTS: dict[str, Callable[[bool], list[Row]]] = {
    "models": models, "ranks": ranks, "text": text, "shards": shards, "jobs": jobs}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which of them; default: all")
    parser.add_argument("--tiny", action="store_true", help="small and few: to see that it runs")
    parser.add_argument("--out", type=Path, help="write the figures as JSON, beside those of other parts")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    families.quiet()
    now = facts() | {"tiny": given.tiny, "cores": data.cores()}
    say(f"{now['hardware']}, {now['precision']}")
    results = json.loads(given.out.read_text()) if given.out and given.out.is_file() else {}
    for part in given.parts or PARTS:
        began = time.perf_counter()
        results[part] = now | {"rows": PARTS[part](given.tiny)}
        say(f"{part}: {time.perf_counter() - began:.0f} s")
        if given.out:
            given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
