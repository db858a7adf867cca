"""A training stage around the loop: the model made or loaded, checkpoints, resume, export."""
from __future__ import annotations

import copy
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from trainwright.core import checkpoint, hardware, sharding
from trainwright.core.batches import cut
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.ledger import flop_counter
from trainwright.core.loop import Diverged, Train
from trainwright.core.method import Data, Objective, Weigh
from trainwright.core.prepare import Job
from trainwright.core.stage_settings import TrainStage
from trainwright.families import deltas, models
from trainwright.stages.saving import Metrics, Saver, check_finite, signals

if TYPE_CHECKING:
    from trainwright.core.stages import Site

ROWS_OF = 8192
"""Tokens of a step where the recipe says nothing."""

def train(site: Site) -> dict[str, Any]:
    """Train from the start or from the newest whole checkpoint, and fill ``site.out`` with a Hugging Face checkpoint."""
    job, stage, ctx = site.job, site.job.stage, site.context()
    assert isinstance(stage, TrainStage)
    began = time.perf_counter()
    run, rest, path = prepare(site, ctx)
    info = {"steps": run.steps, "tokens": run.steps * ctx.batch_rows * (row_tokens(job) or 0), **parameter_counts(run)}
    site.started(info, resumed=path is not None)
    for line in (*job.told, *_rounded(run)):
        site.listener.say(f"{stage.name}: {line}")
    if path is None and run.ctx.step == 0:
        _probe(run, site)
    metrics = Metrics(site.work / "metrics.jsonl", run.ctx.step)
    saver = Saver(run, site, stage.save_every)
    try:
        with signals(saver):
            run.run(on_step=partial(_hear, metrics, site, saver))
            check_finite(run)
    except Diverged as error:
        good = checkpoint.newest(saver.folder)[0]
        kept = f"the last good checkpoint is {good}" if good else "there was no checkpoint yet"
        raise UserError(f"{job.where}: {error}; {kept}. Lower the learning rate, clip gradients, "
                        "or look at the data of that step.") from None
    finally:
        metrics.close()
    figures = _figures(run, began, rest)
    export(run, site, job)
    if sharding.main():
        (site.out / "metrics.jsonl").write_bytes((site.work / "metrics.jsonl").read_bytes())
        figures["stored_bytes"] = sum(f.stat().st_size for f in site.out.rglob("model*.safetensors"))
        figures["delta_bytes"] = sum(f.stat().st_size for f in site.out.glob("adapter*/*.safetensors"))
    site.texts |= ctx.texts
    return figures


def _hear(metrics: Metrics, site: Site, saver: Saver, row: dict[str, float]) -> None:
    metrics.write(row)
    site.listener.step(site.job.stage.name, row)
    saver.after()


def prepare(site: Site, ctx: Context) -> tuple[Train, dict[str, Any], Path | None]:
    """The loop, built, and loaded where there is a checkpoint (then its JSON and path too)."""
    job, stage = site.job, site.job.stage
    assert isinstance(stage, TrainStage)
    folder = site.folder("data") or site.folder("tokenizer")
    ctx.tokenizer = models.load_tokenizer(folder, job.where) if folder else None
    model = make_model(site, ctx)
    ctx.batch_rows = batch_rows(job, stage)
    steps = steps_of(job, stage, ctx)
    for role in ("reference", "teacher"):
        if other := site.folder(role):
            ctx.frozen[role] = models.load(other, job.where).to(ctx.device).eval().requires_grad_(False)
    path, damaged = checkpoint.newest(site.work / "checkpoints")
    for bad in damaged:
        site.listener.say(f"{stage.name}: the checkpoint {bad.name} is damaged; going on from the one before it")
    rest = checkpoint.read(path) if path else {}
    precision = hardware.set_precision(model, stage.precision)
    tokens = steps * ctx.batch_rows * (row_tokens(job) or 1)
    ctx.compile = hardware.compile_pays(model, tokens) if stage.compile == "auto" else stage.compile
    if stage.checkpointing:
        sharding.checkpoint_blocks(model)
    run = Train(model, job.methods, steps, accumulate=stage.accumulate, precision=precision, eval_every=stage.eval_every, ctx=ctx)
    run.build(checkpoint.journal_of(rest, job.root) if rest else ())
    if path:
        checkpoint.load_into(run, path, rest)
    return run, rest, path


def make_model(site: Site, ctx: Context) -> nn.Module:
    """The stage's model with its starting weights, and a tokenizer that is known to be its own."""
    job, stage = site.job, site.job.stage
    assert isinstance(stage, TrainStage)
    source = site.folder("model")
    if source is None:
        assert stage.model is not None
        return models.create(models.from_table(stage.model, ctx.tokenizer, job.where), job.seed, job.where).to(ctx.device)
    model = models.load(source, job.where)
    own = models.load_tokenizer(source, job.where)
    if own is not None and ctx.tokenizer is not None and own.get_vocab() != ctx.tokenizer.get_vocab():
        raise UserError(f"{job.where}: the corpus was tokenized by another tokenizer than the model's own: make the corpus with "
                        "from = { tokenizer = … } of the model's stage, or tokenizer = the model's path.")
    ctx.tokenizer = ctx.tokenizer or own
    size = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if ctx.tokenizer is not None and len(ctx.tokenizer) > size:
        raise UserError(f"{job.where}: the vocabulary of {len(ctx.tokenizer)} tokens does not fit the model's {size} embeddings.")
    return model.to(ctx.device)


def row_tokens(job: Job) -> int | None:
    counts = [m.row_tokens() for m in job.of(Data)]
    return next((n for n in reversed(counts) if n), None)


def batch_rows(job: Job, stage: TrainStage) -> int:
    """Rows of a step, which ranks and micro-batches must share evenly."""
    tokens = row_tokens(job)
    if stage.batch_size is not None:
        rows = stage.batch_size
    elif tokens is None:
        raise UserError(f"{job.where}: its data has no fixed row length: say batch_size (rows a step) instead of batch_tokens.")
    else:
        rows = (stage.batch_tokens or max(ROWS_OF, tokens)) // tokens
        if not rows:
            raise UserError(f"{job.where}: batch_tokens = {stage.batch_tokens} is less than one row of {tokens} tokens.")
    parts = sharding.world() * stage.accumulate
    if rows % parts:
        ranks = f"{sharding.world()} ranks and " if sharding.world() > 1 else ""
        raise UserError(f"{job.where}: a step of {rows} rows does not divide over {ranks}{stage.accumulate} micro-batches "
                        f"(accumulate); take a multiple of {parts} rows" + (f" of {tokens} tokens each." if tokens else "."))
    return rows


def steps_of(job: Job, stage: TrainStage, ctx: Context) -> int:
    """Optimizer steps of the whole stage."""
    if stage.steps is not None:
        return stage.steps
    tokens = row_tokens(job)
    if stage.epochs is not None:
        rows: int | None = next((n for m in job.of(Data) if (n := m.epoch(ctx))), None)
        if rows is None:
            raise UserError(f"{job.where}: its data has no epochs: say steps or tokens.")
        return max(1, round(stage.epochs * rows / ctx.batch_rows))
    if tokens is None:
        raise UserError(f"{job.where}: its data does not count in tokens: say steps.")
    assert stage.tokens is not None
    steps = stage.tokens // (ctx.batch_rows * tokens)
    if not steps:
        raise UserError(f"{job.where}: tokens = {stage.tokens} is less than one step of {ctx.batch_rows * tokens} tokens.")
    return steps


def state_bytes(run: Train) -> int:
    """Bytes of what the methods remember of single parameters."""
    leaves = [t for s in run.states.values() for named in s.get("param", {}).values() for t in named.values()]
    return sum(t.numel() * t.element_size() for t in leaves)


def _rounded(run: Train) -> list[str]:
    """A line where weights are trained whose type is too coarse for small steps."""
    trained = [p for p in run.params.values() if p.requires_grad]
    coarse, whole = (sum(p.numel() for p in of) for of in ([p for p in trained if p.dtype == torch.bfloat16], trained))
    return [f"{coarse:,} of {whole:,} trained parameters are bfloat16, which keeps no change below about a 256th of a weight: "
            'small steps are lost. Train an adapter (its own weights are float32), or say precision = "bf16"'] if coarse else []


def parameter_counts(run: Train) -> dict[str, int]:
    return {"parameters": sum(p.numel() for p in run.params.values()),
            "trainable": sum(p.numel() for p in run.params.values() if p.requires_grad)}


def _probe(run: Train, site: Site) -> None:
    """Before the first step: show an example, and count the FLOPs of a micro-batch. Leaves no trace in the run."""
    ctx, data = run.ctx, run.of(Data)
    asked = [*data, *run.of(Objective), *run.of(Weigh)]
    kept, compiled = {k: copy.deepcopy(run.states[k]) for k, _ in asked}, ctx.compile
    ctx.compile = False
    batch = run.pull()
    for _, m in data:
        if text := m.preview(batch, ctx):
            site.listener.say(text)
    parts = cut(batch, run.accumulate)
    micro = next((b for b in parts if all(m.count(b) for _, m in run.of(Objective))), parts[0])
    with flop_counter() as counter:
        run.gradients([micro])
    tokens = micro["input_ids"].numel() if "input_ids" in micro else 0
    run.ledger.flops_per_token = counter.get_total_flops() / tokens if tokens else 0.0
    run.states |= kept
    ctx.compile = compiled


def export(run: Train, site: Site, job: Job) -> None:
    """Write the model as a plain checkpoint; adapters are saved beside it and folded in where they can. The live run is over."""
    with run.viewed(), torch.no_grad():
        weights = _whole(run)
        if sharding.main():
            model = run.model if weights is None else _unsharded(run, site, job, weights)
            for name in deltas.write(model, run.performed, job.seed, site.out, run.ctx.tokenizer):
                site.listener.say(f"{job.stage.name}: {name} cannot be folded into the weights: the model is backbone/ "
                                  "and adapter/ together, which only trainwright loads as one")
    sharding.barrier()


def _whole(run: Train) -> dict[str, Any] | None:
    """All weights on rank 0, gathered from the shards; None where there are no shards."""
    if sharding.world() == 1:
        return None
    return get_model_state_dict(run.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def _unsharded(run: Train, site: Site, job: Job, weights: dict[str, Any]) -> nn.Module:
    """The model as the loop had it, in one process."""
    model = make_model(site, Context(seed=job.seed, tokenizer=run.ctx.tokenizer))
    for surgery in run.performed:
        surgery.operate(model, Context(seed=job.seed, root=job.root, inputs=site.inputs))
    model.load_state_dict(weights)
    return model


def _figures(run: Train, began: float, rest: dict[str, Any]) -> dict[str, Any]:
    counts, ledger = parameter_counts(run), run.ledger
    return {"steps": run.ctx.step, "tokens": int(ledger.tokens), "trained_tokens": int(ledger.trained_tokens),
            "flops": ledger.flops, "seconds": round(ledger.seconds, 3), "peak_memory_bytes": int(ledger.peak_memory),
            "parameters": counts["parameters"], "trainable_parameters": counts["trainable"], "state_bytes": state_bytes(run),
            "loss": run.row.get("loss"), "evaluation": run.evaluation, "stopped": run.stopped or None, "precision": run.precision,
            "compiled": run.ctx.compile, "resumed": bool(rest), "wall_seconds": round(time.perf_counter() - began, 3)}
