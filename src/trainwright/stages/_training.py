"""What a training stage does around the loop: model, checkpoints, snapshots, resume, export."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainwright import families
from trainwright.core import checkpoint, hardware, sharding
from trainwright.core.build import build
from trainwright.core.checkpoint import STATE
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.loop import Diverged, Train
from trainwright.core.method import Decode, Method, Surgery
from trainwright.families import frozen, mapped
from trainwright.families.mapped import Scratch
from trainwright.life.jobs import Job, Source
from trainwright.life.saving import CHECKPOINTS, Metrics, Saver, check_finite, signals
from trainwright.life.stage_run import StageRun
from trainwright.stages._kept import BEST, Best, Snapshots
from trainwright.stages._rehearsal import rehearse
from trainwright.stages.train import SNAPSHOTS, TrainStage
from trainwright.storage.store import Store

COMPILE_FLOPS = {"cpu": 5e12, "cuda": 4e15}
"""Work of a stage, for each block of its model, from which torch.compile earns back its start (measured on
two cores: some 10 s and 3 s a block); fixed, so that a run is reproducible."""


def stage_of(job: Job) -> TrainStage:
    """The settings of a job that trains."""
    assert isinstance(job.stage, TrainStage)
    return job.stage


def train(site: StageRun) -> dict[str, Any]:
    """Train from the start or from the newest whole checkpoint, and fill ``site.out`` with a
    Hugging Face checkpoint."""
    job, stage = site.job, stage_of(site.job)
    began = time.perf_counter()
    own, damaged = checkpoint.newest(site.work / CHECKPOINTS)
    for bad in damaged:
        site.listener.say(
            f"{stage.name}: the checkpoint {bad.name} is damaged; going on from the one before it"
        )
    run = assemble(job, site.store, site.context(), own or _continued(site), same=own is not None)
    if own is None and run.ctx.step >= run.steps:
        raise UserError(
            f"{job.where}: the state of step {run.ctx.step} is beyond its {run.steps} steps, which count "
            "from the start of the run that it goes on with."
        )
    row = stage.row_tokens(job) or 0
    info = {"steps": run.steps, "tokens": run.steps * run.ctx.batch_rows * row, **parameter_counts(run)}
    site.started(info, resumed=own is not None)
    for line in (*job.told, *_rounded(run)):
        site.listener.say(f"{stage.name}: {line}")
    if own is None and run.ctx.step == 0:
        rehearse(run, site.listener.say)
    kept, best = Snapshots(run, stage, site.work / SNAPSHOTS), Best(run, stage, site.work / BEST)
    _loop(run, site, (kept, best))
    best.end()
    figures = _figures(run, began, own is not None) | best.figures()
    if best.earlier is not None:
        run = assemble(job, site.store, site.context(), best.earlier)
        best.show(run.ctx)
    _export(run, site, site.out)
    for label in kept.labels:
        _export_snapshot(site, label)
    site.keep(run.ctx)
    return figures | (_written(site) if sharding.main() else {})


def _written(site: StageRun) -> dict[str, int]:
    """Keep the rows of metrics; sizes of what was exported."""
    (site.out / "metrics.jsonl").write_bytes((site.work / "metrics.jsonl").read_bytes())
    weights = families.weight_files(families.backbone(site.out))
    deltas = site.out.glob("adapter*/*.safetensors")
    return {"stored_bytes": sum(f.stat().st_size for f in weights),
            "delta_bytes": sum(f.stat().st_size for f in deltas)}


def _loop(run: Train, site: StageRun, kept: Sequence[Snapshots | Best]) -> None:
    """The steps, with what is written along the way."""
    metrics = Metrics(site.work / "metrics.jsonl", run.ctx.step)
    saver = Saver(run, site.work, stage_of(site.job).save_every)

    def hear(row: dict[str, float]) -> None:
        metrics.write(row)
        site.listener.step(site.job.stage.name, row)
        for one in kept:
            one.after()
        saver.after()

    try:
        with signals(saver):
            run.run(on_step=hear)
            check_finite(run)
    except Diverged as error:
        good = checkpoint.newest(saver.folder)[0]
        left = f"the last good checkpoint is {good}" if good else "there was no checkpoint yet"
        why = str(error).rstrip(".")
        raise UserError(f"{site.job.where}: {why}; {left}. Lower the learning rate, clip gradients, or look "
                        "at the data of that step.") from None
    finally:
        metrics.close()


def _continued(site: StageRun) -> Path | None:
    """The checkpoint that ``from.state`` names."""
    folder = site.folder("state")
    if folder is None:
        return None
    before = stage_of(site.job).continued(site.job)
    assert before is not None
    if [m for m in before.methods if isinstance(m, Surgery)] != [
        m for m in site.job.methods if isinstance(m, Surgery)
    ]:
        raise UserError(
            f"{site.job.where}: a run that goes on with {site.job.inputs['state'][0].name} has the same "
            f"surgeries as {before.stage.name!r}: {', '.join(m.name for m in before.of(Surgery)) or 'none'}."
        )
    if not checkpoint.whole(folder / STATE):
        raise UserError(
            f"{site.job.where}: the state in {folder} is not whole; remove its artifact and run its stage "
            f"again."
        )
    return folder / STATE


def assemble(
    job: Job,
    store: Store,
    ctx: Context,
    saved: Path | None = None,
    steps: int | None = None,
    same: bool = True,
    methods: Callable[[nn.Module], list[Method]] | None = None,
) -> Train:
    """The stage's loop, built; the same for a run and for those that try one.

    What the stage is made from is taken where it is there; a model that is not yet made, be it
    the one to train or one that stays as it is, has fresh weights of its config.

    Args:
        ctx: with ``inputs`` as far as they are there.
        saved: a checkpoint to go on from.
        same: whether its methods must be those of the stage.
        steps: of the stage, where that is not its own affair.
        methods: makes the methods where they are not the job's, given the model.
    """
    stage = stage_of(job)
    ctx.tokenizer, ctx.decode = _tokenizer(job, ctx), job.of(Decode)
    model = start(job, store, ctx)
    ctx.batch_rows, device = stage.batch_rows(job), ctx.device
    known = stage.epochs is None or "data" in ctx.inputs
    own = stage.steps_of(job, ctx) if known else 0
    for role, source in others(job).items():
        ctx.frozen[role] = _weights(source, job, store).to(device).eval().requires_grad_(False)
    tokens = own * ctx.batch_rows * (stage.row_tokens(job) or 1)
    worth = stage.frozen == stage.frozen_tables == "whole" and _compile_pays(model, tokens)
    check_compiler(job)
    ctx.compile = worth and _compiler() is not None if stage.compile == "auto" else stage.compile
    if sharding.world() > 1:
        ctx.device = torch.device("cpu")             # where surgeries act, until the model is cut into shards
    with _spread(store):
        return build(model, methods(model) if methods else job.methods, own if steps is None else steps, ctx,
                     accumulate=stage.accumulate, precision=stage.precision, eval_every=stage.eval_every,
                     checkpointing=stage.checkpointing, saved=saved, same=same,
                     frozen=frozen.holding(stage.frozen, stage.frozen_tables))


def _compile_pays(model: nn.Module, tokens: int) -> bool:
    """Whether the stage is long enough for torch.compile."""
    parameters, blocks = sum(p.numel() for p in model.parameters()), max(1, len(sharding.blocks(model)))
    return 6.0 * parameters * tokens > blocks * COMPILE_FLOPS["cuda" if torch.cuda.is_available() else "cpu"]


def _compiler() -> str | None:
    """The C++ compiler with which torch.compile makes its code."""
    return shutil.which(os.environ.get("CXX", "g++"))


def check_compiler(job: Job) -> None:
    """Refuse a stage that asks to be compiled where nothing can compile it."""
    if stage_of(job).compile is True and _compiler() is None:
        raise UserError(f"{job.where}: compile = true needs a C++ compiler, and there is no "
                        f"{os.environ.get('CXX', 'g++')}: install one (apt install g++), name another in the "
                        "variable CXX, or say compile = false.")


def others(job: Job) -> dict[str, Source]:
    """The models that a stage has beside the one that it trains (a reference, a teacher), by role."""
    alone = {role: found[0] for role, found in job.inputs.items()
             if role not in job.stage.roles and len(found) == 1}
    return {role: s for role, s in alone.items() if s.job is None or s.job.stage.makes == "model"}


def _tokenizer(job: Job, ctx: Context) -> Any:
    """That of the corpora, which must be one, or of ``from.tokenizer``."""
    folders = ctx.inputs.get("data") or ctx.inputs.get("tokenizer") or []
    found = [families.load_tokenizer(folder, job.where) for folder in folders]
    for name, other in zip(ctx.names.get("data", ())[1:], found[1:], strict=False):
        if other is not None and found[0] is not None and other.get_vocab() != found[0].get_vocab():
            raise UserError(
                f"{job.where}: from.data: {ctx.names['data'][0]} and {name} were tokenized by different "
                f"tokenizers; "
                "make both with one (from.tokenizer)."
            )
    return found[0] if found else None


def start(job: Job, store: Store, ctx: Context) -> nn.Module:
    """The stage's model before any method acts, with its starting weights, and a tokenizer that
    is known to be its own. On several ranks it lies in files that are mapped (``families/mapped.py``)."""
    several = sharding.world() > 1
    coarse = hardware.decided(stage_of(job).precision) == "bf16-true"
    model = _start(job, store, ctx, torch.bfloat16 if several and coarse else None)
    if several and coarse:
        Scratch(store.folder("cache")).convert(model, torch.bfloat16)
    return model if several else model.to(ctx.device)


def _start(job: Job, store: Store, ctx: Context, kind: torch.dtype | None) -> nn.Module:
    """The same, on the CPU. ``kind``: of the large weights of a checkpoint that is all of the model."""
    stage = stage_of(job)
    source = stage.origin(job)
    if source is None:
        run = job
        while (before := stage_of(run).continued(run)) is not None:
            run = before
        table = stage_of(run).model
        assert table is not None
        known = ctx.tokenizer is not None
        config = (
            families.from_table(table, ctx.tokenizer, job.where, job.root)
            if known
            else stage.start_config(job, store)
        )
        with _spread(store):
            model = families.create(config, run.seed, job.where)
        families.stop_at(model, ctx.tokenizer)
        return model
    model = _weights(source, job, store, None if source.unfolded(store, job.where) else kind)
    own = families.load_tokenizer(source.path(store, job.where), job.where) if source.ready(store) else None
    if own is not None and ctx.tokenizer is not None and own.get_vocab() != ctx.tokenizer.get_vocab():
        raise UserError(
            f"{job.where}: the corpus was tokenized by another tokenizer than the model's own: make the "
            f"corpus with "
            "from = { tokenizer = … } of the model's stage, or tokenizer = the model's path."
        )
    ctx.tokenizer = ctx.tokenizer or own
    size = families.vocabulary_of(model)
    if ctx.tokenizer is not None and size is not None and len(ctx.tokenizer) > size:
        raise UserError(
            f"{job.where}: the vocabulary of {len(ctx.tokenizer)} tokens does not fit the model's {size} "
            f"embeddings."
        )
    families.stop_at(model, ctx.tokenizer)
    return model


def _weights(source: Source, job: Job, store: Store, kind: torch.dtype | None = None) -> nn.Module:
    """The model of a source, with fresh weights where it is not made yet. ``kind``: on several ranks, of the
    large weights that are read."""
    if source.ready(store):
        with _spread(store, kind):
            return source.load(store, job.where)  # type: ignore[no-any-return]
    with _spread(store):
        return families.create(source.config(store, job.where), job.seed, job.where)


def _spread(store: Store, kind: torch.dtype | None = None) -> AbstractContextManager[None]:
    """On several ranks, put the large weights that modules are given within into mapped files."""
    return Scratch(store.folder("cache")).catching(kind) if sharding.world() > 1 else nullcontext()


def state_bytes(run: Train) -> int:
    """Bytes of what the methods remember of single parameters."""
    leaves = [t for s in run.states.values() for named in s.get("param", {}).values() for t in named.values()]
    return sum(t.numel() * t.element_size() for t in leaves)


def _rounded(run: Train) -> list[str]:
    """A line where weights are trained whose type is too coarse for small steps."""
    trained = [p for p in run.params.values() if p.requires_grad]
    coarse, whole = (
        sum(p.numel() for p in of) for of in ([p for p in trained if p.dtype == torch.bfloat16], trained)
    )
    return (
        [
            f"{coarse:,} of {whole:,} trained parameters are bfloat16, which keeps no change below about a "
            f"256th of a weight: "
            'small steps are lost. Train an adapter (its own weights are float32), or say precision = "bf16"'
        ]
        if coarse
        else []
    )


def parameter_counts(run: Train) -> dict[str, int]:
    """``parameters`` and ``trainable`` ones."""
    return {"parameters": sum(p.numel() for p in run.params.values()),
            "trainable": sum(p.numel() for p in run.params.values() if p.requires_grad)}


# ---- what is left ------------------------------------------------------------------------------------------


def _export(run: Train, site: StageRun, out: Path) -> None:
    """Write the model as a plain checkpoint; adapters are saved beside it and folded in where they can.
    The live run is over."""
    with run.viewed(), torch.no_grad():
        model = run.model if sharding.world() == 1 else _unsharded(run, site)
        if model is not None:
            for name in families.write(model, run.performed, site.job.seed, out, run.ctx.tokenizer):
                site.listener.say(
                    f"{site.job.stage.name}: {name} cannot be folded into the weights: the model is "
                    f"backbone/ "
                    "and adapter/ together, which only trainwright loads as one"
                )
    sharding.barrier()


def _export_snapshot(site: StageRun, label: str) -> None:
    """A snapshot as an artifact within the artifact: a plain checkpoint, and the state of the run."""
    out, state = site.out / SNAPSHOTS / label, site.work / SNAPSHOTS / label
    if sharding.main():
        out.mkdir(parents=True)
    sharding.barrier()
    run = assemble(site.job, site.store, site.context(), state)
    _export(run, site, out)
    if sharding.main():
        shutil.copytree(state, out / STATE)
    sharding.barrier()


def _unsharded(run: Train, site: StageRun) -> nn.Module | None:
    """On rank 0 the model as the loop had it, in mapped files, where it is folded and written; None on the
    others. Each rank writes its own rows into the files, and no tensor is sent."""
    job, trained = site.job, run.model.state_dict()
    files = mapped.write_shards(trained, site.work / "whole")
    if not sharding.main():
        return None
    model = start(job, site.store, Context(seed=job.seed, tokenizer=run.ctx.tokenizer))
    hardware.set_precision(model, run.precision)
    scratch = Scratch(site.store.folder("cache"))
    with scratch.catching():
        for surgery in run.performed:
            surgery.operate(model, Context(seed=job.seed, root=job.root, inputs=site.inputs))
    own = model.state_dict(keep_vars=True)
    for name, t in trained.items():
        own.pop(name).data = mapped.taken(files[name], t) if name in files else scratch.copied(t)
    assert not own, f"the model has no {next(iter(own), '')}"
    return model


def _figures(run: Train, began: float, resumed: bool) -> dict[str, Any]:
    counts, ledger = parameter_counts(run), run.ledger
    return {
        "steps": run.ctx.step,
        "tokens": int(ledger.tokens),
        "trained_tokens": int(ledger.trained_tokens),
        "flops": ledger.flops,
        "seconds": round(ledger.seconds, 3),
        "peak_memory_bytes": int(ledger.peak_memory),
        "parameters": counts["parameters"],
        "trainable_parameters": counts["trainable"],
        "weight_bytes": frozen.weight_bytes(run.model),
        "state_bytes": state_bytes(run),
        "loss": run.row.get("loss"),
        "evaluation": run.evaluation,
        "stopped": run.stopped or None,
        "precision": run.precision,
        "compiled": run.ctx.compile,
        "resumed": resumed,
        "wall_seconds": round(time.perf_counter() - began, 3),
    }
