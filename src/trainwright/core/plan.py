"""What a recipe will do, and what it will cost, before it does it."""
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from trainwright.core import hardware, ledger, models, sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError, located
from trainwright.core.loop import Train
from trainwright.core.method import Controller, Curate, Data, Evaluator, Method, Objective, Surgery, Update, Weigh
from trainwright.core.prepare import Job, jobs
from trainwright.core.recipe import Recipe
from trainwright.core.stage_settings import TrainStage
from trainwright.core.store import Store
from trainwright.core.training import batch_rows, parameter_counts, row_tokens, state_bytes, steps_of

PLACES: tuple[tuple[str, tuple[type[Method], ...]], ...] = (
    ("1 surgery", (Surgery,)), ("2 control", (Controller,)), ("3 data", (Data,)), ("4 objective", (Objective, Weigh)),
    ("5-6 update", (Update,)), ("7 measure", (Evaluator,)))
CALIBRATION = 4096
"""Tokens of the micro-batch that is timed, at most."""
LARGEST = 6e8
"""Parameters up to which a plan makes the model and times a micro-batch of it."""


@dataclass
class StagePlan:
    """One stage: who acts where, and the figures that can be known before running."""

    job: Job
    cached: bool
    places: list[tuple[str, list[str]]]
    figures: dict[str, float] = field(default_factory=dict)
    """parameters, trainable, steps, tokens, flops, seconds, memory_bytes: as far as known."""
    owns: list[str] = field(default_factory=list)
    note: str = ""


@dataclass
class Plan:
    """A recipe's stages as planned."""

    recipe: Recipe
    stages: list[StagePlan]

    def __str__(self) -> str:
        lines = [self.recipe.title]
        for one in self.stages:
            lines.append(f"{one.job.stage.name} ({one.job.stage.kind}, {'in the store' if one.cached else 'to run'})")
            lines += [f"  {place:12} {' -> '.join(who)}" for place, who in one.places]
            lines += [f"  {name:12} {value:,.0f}" for name, value in one.figures.items()]
            lines += [f"  {one.note}"] if one.note else []
        return "\n".join(lines)


def plan(recipe: Recipe, store: Store, predict: bool = True) -> Plan:
    """Check everything that can be checked before running, and predict what each stage will cost (seconds of calibration).

    Raises:
        UserError: any mistake in the recipe, claims that collide, or more memory than the machine has.
    """
    return Plan(recipe, [_stage(job, store, predict) for job in jobs(recipe, store)])


def _stage(job: Job, store: Store, predict: bool) -> StagePlan:
    found = store.find(job.stage.name, job.key)
    out = StagePlan(job, found is not None, places(job))
    if found is not None and isinstance(job.stage, TrainStage):
        names = {"parameters": "parameters", "trainable_parameters": "trainable", "steps": "steps", "tokens": "tokens",
                 "flops": "flops", "seconds": "seconds", "peak_memory_bytes": "memory_bytes"}
        out.figures = {mine: found.figures[theirs] for theirs, mine in names.items()}
    elif predict and isinstance(job.stage, TrainStage):
        try:
            with located(job.where):
                _predict(job, job.stage, store, out)
        except _Unknown as why:
            out.note = str(why)
    return out


def places(job: Job) -> list[tuple[str, list[str]]]:
    """Who acts in which place, in order."""
    if not isinstance(job.stage, TrainStage):
        kind = "curate" if job.of(Curate) else "combine" if job.stage.kind == "merge" else "measure"
        return [(kind, [words(m) for m in job.methods])]
    return [(place, [words(m) for m in job.methods if isinstance(m, kinds)]) for place, kinds in PLACES
            if any(isinstance(m, kinds) for m in job.methods)]


def words(method: Method) -> str:
    """A method with the settings that differ from their defaults."""
    import dataclasses
    changed = {f.name: v for f in dataclasses.fields(method)  # type: ignore[arg-type]
               if (v := getattr(method, f.name)) != f.default and v not in ((), {})}
    return method.name + (f"({', '.join(f'{k}={v!r}' for k, v in changed.items())})" if changed else "")


def _claims(claims: list[str]) -> str:
    """``knob:lr``, or how many parameters and one of them."""
    return ", ".join(claims) if len(claims) < 4 else f"{len(claims)} parameters, {claims[0]} …"


class _Unknown(Exception):
    """A figure that cannot be known before an earlier stage has run."""


def _predict(job: Job, stage: TrainStage, store: Store, out: StagePlan) -> None:
    config = job.config(store)
    if config is None:
        raise _Unknown("the model is not on this machine yet: nothing is predicted.")
    ctx = Context(seed=job.seed, device=sharding.device(), root=job.root)
    ctx.batch_rows = batch_rows(job, stage)
    ready = all(s.job is None or store.find(s.job.stage.name, s.job.key) for s in job.inputs.get("data", ()))
    if ready:
        ctx.inputs = {"data": [s.path(store, job.where) for s in job.inputs.get("data", ())]}
    skeleton = models.skeleton(config, job.where)
    total = sum(p.numel() for p in skeleton.parameters())
    tokens = row_tokens(job)
    out.figures["parameters"] = total
    out.owns = [f"{m.name}: {_claims(sorted(claims))}" for m in job.methods if (claims := m.claims(skeleton))]
    if stage.epochs is None or ready:
        out.figures["steps"] = ctx.steps = steps_of(job, stage, ctx)
        out.figures["tokens"] = ctx.steps * ctx.batch_rows * (tokens or 0)
    if total > LARGEST or tokens is None:
        raise _Unknown("memory and time are predicted for language models of up to 600 M parameters.")
    _calibrate(job, stage, config, ctx, out)


def _calibrate(job: Job, stage: TrainStage, config: Any, ctx: Context, out: StagePlan) -> None:
    """Make the model with fresh weights, run a micro-batch of it, and scale up what that took."""
    before, run = ledger.memory(), _trial(job, stage, config, ctx)
    tokens, rows = row_tokens(job) or 1, ctx.batch_rows // stage.accumulate
    sample = max(1, min(rows, CALIBRATION // tokens))
    batch = synthetic(sample, tokens, config.vocab_size, ctx)
    saved, flops = _traced(run, batch)
    forth, grads = min((_timed(partial(run.gradients, [batch])) for _ in range(2)), key=lambda t: t[0])
    with torch.no_grad():
        update, _ = _timed(partial(run.chain.step, grads, run.params, run.states, run.ctx))
    counts = parameter_counts(run)
    weights = sum(t.numel() * t.element_size() for t in run.model.state_dict().values())
    out.figures |= {"parameters": counts["parameters"], "trainable": counts["trainable"],
                    "memory_bytes": before + weights + state_bytes(run) + 4 * counts["trainable"] + saved * rows / sample}
    if "tokens" in out.figures:
        out.figures["flops"] = flops / (sample * tokens) * out.figures["tokens"]
        out.figures["seconds"] = (forth / (sample * tokens) * ctx.batch_rows * tokens + update) * ctx.steps
    needed, available = out.figures["memory_bytes"], hardware.memory_bytes()
    if needed > available:
        raise UserError(f"{job.where}: about {needed / 2**30:.1f} GiB of memory are needed and {available / 2**30:.1f} GiB "
                        "are there: raise accumulate, lower batch_tokens, or set checkpointing = true.")


def _trial(job: Job, stage: TrainStage, config: Any, ctx: Context) -> Train:
    """The stage's loop on a model with fresh weights, without its data."""
    precision = hardware.best_precision() if stage.precision == "auto" else stage.precision
    model = models.create(config, job.seed, job.where).to(ctx.device)
    if stage.checkpointing:
        sharding.checkpoint_blocks(model)
    methods = [m for m in job.methods if not isinstance(m, (Data, Evaluator, Controller))]
    run = Train(model, methods, 1, precision=precision, ctx=Context(seed=job.seed, device=ctx.device, root=job.root))
    run.build()
    return run


def _traced(run: Train, batch: dict[str, Any]) -> tuple[int, int]:
    """Bytes that a micro-batch keeps for backward, and its FLOPs."""
    saved: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in run.params.values()}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in weights:
            saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        run.gradients([batch])
    return sum(saved.values()), counter.get_total_flops()


def _timed(what: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = what()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began, result


def synthetic(rows: int, tokens: int, vocabulary: int, ctx: Context) -> dict[str, Any]:
    """A language batch of the right shape."""
    ids = torch.randint(vocabulary, (rows, tokens), generator=ctx.rng("plan", at=0))
    place = torch.arange(tokens).expand(rows, tokens).contiguous()
    zeros = torch.zeros_like(ids)
    batch = {"input_ids": ids, "targets": ids.roll(-1, 1), "position_ids": place, "document": zeros, "domain": zeros}
    return {n: t.to(ctx.device) for n, t in batch.items()} | {"domains": ("any",), "packed": False}
