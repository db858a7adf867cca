"""A training stage: one loop, from a model or from nothing."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainwright.core.errors import UserError
from trainwright.core.metrics import direction
from trainwright.core.settings import Large, Seed
from trainwright.core.stage import CORPORA, MODEL, TOKENIZER, Made, Role, Stage, check_seed, label_of

if TYPE_CHECKING:
    from trainwright.core.context import Context
    from trainwright.core.method import Method
    from trainwright.life.jobs import Job, Source
    from trainwright.life.stage_run import StageRun
    from trainwright.storage.store import Store

STEP_TOKENS = 8192
"""Tokens of a step where the recipe says nothing."""
SNAPSHOTS = "snapshots"
"""Folder of an artifact with a folder for each state that was kept on the way, under its label."""
PLACES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("1 surgery", ("Surgery",)),
    ("2 control", ("Controller",)),
    ("3 data", ("Data",)),
    ("4 objective", ("Objective", "Weigh")),
    ("5-6 update", ("Update",)),
    ("7 measure", ("Evaluator", "Decode")),
)


@dataclass(frozen=True, kw_only=True)
class TrainStage(Stage):
    """One training loop."""

    roles = {"model": MODEL, "data": CORPORA, "tokenizer": TOKENIZER, "state": Role(("state",))}
    acting = (
        "Data",
        "Surgery",
        "Objective",
        "Weigh",
        "Update",
        "Controller",
        "Evaluator",
        "Decode",
        "ScalingLaw",
    )
    idle = ("name", "save_every")
    trains = True
    doing = "getting ready"

    model: dict[str, Any] | None = None
    """A model from scratch: ``type`` and the fields of its transformers config; or
    ``family``, or a ``factory``."""
    tokens: Large | None = None
    """How far to train, in tokens; or ``steps``, or ``epochs``. With ``from.state`` it counts from
    the start of that run."""
    steps: int | None = None
    """How far to train, in steps."""
    epochs: float | None = None
    """How far to train, in passes over the data."""
    batch_tokens: int | None = None
    """Tokens of one step, over all ranks and micro-batches (if nothing is said: what a scaling law
    suggests, else 8192)."""
    batch_size: int | None = None
    """Rows of one step, over all ranks and micro-batches, instead of ``batch_tokens``."""
    accumulate: int = 1
    """Micro-batches that a step is cut into on each rank; it never changes the loss."""
    precision: Literal["auto", "auto-true", "bf16", "bf16-true", "fp32"] = "auto"
    """``bf16`` is autocast with float32 weights; ``auto`` takes it where the hardware is fast at it.
    ``bf16-true``: the weights are bfloat16, half as large, for adapters on a model that is frozen; what an
    adapter adds stays float32. ``auto-true`` takes that where the hardware is fast at it, else ``fp32``."""
    frozen: Literal["whole", "nf4", "int4"] = "whole"
    """How the matrices of the blocks that are not trained are held, beside an adapter: ``nf4`` and ``int4``
    take about four bits a weight, in blocks of 64 (QLoRA). The model that the stage leaves is made of what
    these bits stand for."""
    frozen_tables: Literal["whole", "int8"] = "whole"
    """How embeddings and head are held, where neither is trained: ``int8`` takes eight bits a weight, and a
    scale for each word."""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile; ``auto`` where the stage is long enough to earn it back."""
    checkpointing: bool = False
    """Activation checkpointing: less memory, about a third more time."""
    eval_every: int = 0
    """Steps between evaluations; 0: only at the end."""
    save_every: int = 0
    """Steps between checkpoints; 0: about one a minute."""
    snapshots: tuple[Any, ...] = ()
    """States to keep on the way, in steps (``500``) or shares of the run (``0.5``, ``1.0``):
    each is ``NAME@500``, which later stages take as ``from.model`` (its weights) or
    ``from.state`` (the optimizer and the
    place in the data too)."""
    keep: str = "last"
    """Which weights the stage hands on: those of the ``last`` step, or ``best:METRIC``, such as
    ``best:loss/code``: those that measured best on the way (each ``eval_every`` steps, and at the end)."""
    seed: Seed | None = None
    """Seed of this stage; default: the recipe's."""

    def check(self, where: str) -> None:
        far = {k: v for k in ("tokens", "steps", "epochs") if (v := getattr(self, k)) is not None}
        if len(far) != 1:
            raise UserError(f"{where}: say how far to train with one of tokens, steps, epochs; "
                            f"it has {', '.join(far) or 'none'}.")
        sizes = {k: getattr(self, k) for k in ("batch_tokens", "batch_size") if getattr(self, k) is not None}
        if len(sizes) > 1:
            raise UserError(f"{where}: say batch_tokens or batch_size, not both.")
        for key, value in {**far, **sizes, "accumulate": self.accumulate}.items():
            if not 0 < value < 2**63:
                raise UserError(f"{where}: {key} must be a positive number, not {value}.")
        for key in ("eval_every", "save_every"):
            if getattr(self, key) < 0:
                raise UserError(f"{where}: {key} must not be negative, not {getattr(self, key)}.")
        check_seed(self.seed, where)
        for key in ("frozen", "frozen_tables"):
            if getattr(self, key) != "whole" and self.compile is True:
                raise UserError(
                    f'{where}: {key} = "{getattr(self, key)}" is not compiled: leave compile = true out.')
        self._check_snapshots(where)
        self._check_keep(where)
        starts = [f"from.{role}" for role in ("model", "state") if role in self.inputs] + ["model"] * (
            self.model is not None
        )
        if len(starts) != 1:
            raise UserError(
                f"{where}: say one of from.model (go on with a model), from.state (go on with a run) and "
                f"model (make "
                f"one from scratch); it has {' and '.join(starts) or 'none'}."
            )
        if self.model is not None and not any(
            isinstance(self.model.get(k), str) for k in ("type", "factory")
        ):
            raise UserError(
                f"{where}: model needs a type, for example {{ type = \"llama\", hidden_size = 128 }}."
            )

    def _check_snapshots(self, where: str) -> None:
        for at in self.snapshots:
            if not (type(at) is int and at >= 1) and not (type(at) is float and 0 < at <= 1):
                raise UserError(
                    f"{where}: snapshots are steps (whole numbers from 1 on) or shares of the run "
                    "(above 0, up to 1.0), "
                    f"not {at!r}."
                )
        if len(set(map(str, self.snapshots))) < len(self.snapshots):
            raise UserError(f"{where}: snapshots names a state twice.")

    @property
    def best(self) -> str:
        """The number whose best weights it keeps; empty where it keeps the last ones."""
        return self.keep.removeprefix("best:") if self.keep != "last" else ""

    def _check_keep(self, where: str) -> None:
        if self.keep == "last":
            return
        if not self.keep.startswith("best:") or not self.best:
            raise UserError(f"{where}: keep is \"last\" or \"best:METRIC\", such as \"best:loss/code\", not "
                            f"{self.keep!r}.")
        if direction(self.best) is None:
            raise UserError(f"{where}: keep = {self.keep!r}: the name {self.best!r} does not say which way "
                            "is better; keep the best of a number such as loss/DOMAIN or accuracy/DOMAIN.")

    def children(self) -> dict[str, tuple[Made, ...]]:
        return {f"{self.name}@{at}": ("model", "state") for at in self.snapshots}

    def subfolder(self, label: str, where: str) -> str:
        kept = [str(at) for at in self.snapshots]
        if label not in kept:
            raise UserError(
                f"{where}: {self.name!r} keeps no snapshot {label!r}; it keeps {', '.join(kept) or 'none'}."
            )
        return f"{SNAPSHOTS}/{label}"

    # ---- when it becomes a job -------------------------------------------------------------------------

    def stand_ins(self, methods: Sequence[Method], where: str) -> list[Method]:
        from trainwright.core import registry
        from trainwright.core.method import Data, Objective, Optimizer
        out: list[Method] = []
        for kind in (Data, Objective, Optimizer):
            if any(isinstance(m, kind) for m in methods):
                continue
            use = registry.default_of(kind.__name__)
            if kind is Data and "data" not in self.inputs:
                raise UserError(
                    f"{where}: nothing to train on: name a corpus as from.data, or a data method."
                )
            if use is not None:
                out.append(registry.create({"use": use}, Path(), where))
        return out

    def resolve(self, job: Job, store: Store) -> None:
        from trainwright.stages import _resolve
        _resolve.fill(job, store)

    def examine(self, job: Job, store: Store) -> None:
        from trainwright.stages import _examine
        _examine.examine(job, store)

    def afford(self, job: Job, store: Store) -> None:
        from trainwright.stages import _memory, _training
        _training.check_compiler(job)
        _memory.check(job, store)

    def config(self, job: Job, store: Store) -> Any:
        from trainwright.core.method import Surgery
        config = self.start_config(job, store)
        for surgery in job.of(Surgery) if config is not None else ():
            config = surgery.resized(config)
        return config

    def start_config(self, job: Job, store: Store) -> Any:
        """The config of the model that it starts from, or None while it cannot be known."""
        from trainwright import families
        if self.model is not None:
            return families.from_table(
                self.model, None, job.where, job.root, job.vocabulary("data", "tokenizer")
            )
        if (run := self.continued(job)) is not None:
            return run.stage.start_config(run, store)  # type: ignore[attr-defined]
        return job.inputs["model"][0].config(store, job.where)

    def continued(self, job: Job) -> Job | None:
        """The training stage whose run it goes on with (``from.state``)."""
        source = job.source("state")
        if source is None:
            return None
        if source.job is None or not source.location:
            raise UserError(f"{job.where}: from.state takes a snapshot of an earlier stage, such as "
                            f"{label_of(source.name)[0]}@500; {source.name!r} is none.")
        return source.job

    def origin(self, job: Job) -> Source | None:
        """The model that it starts from before any method acts; None where it makes one from scratch."""
        run = self.continued(job)
        return job.source("model") if run is None else self.origin_of(run)

    @staticmethod
    def origin_of(run: Job) -> Source | None:
        """The same of another training stage."""
        return run.stage.origin(run)  # type: ignore[attr-defined, no-any-return]

    def vocabulary(self, job: Job) -> int | None:
        return job.vocabulary("data", "tokenizer", "model")

    def reads(self, job: Job) -> list[Path]:
        """The file of a factory."""
        factory = (self.model or {}).get("factory")
        file = job.root / str(factory).rpartition(":")[0]
        return [file] if factory and file.is_file() else []

    def closed(self, job: Job) -> bool:
        from trainwright import families
        before = self.origin(job)
        return families.is_closed(self.model) if before is None else before.closed

    def unfolded(self, job: Job, store: Store) -> bool:
        from trainwright.core.method import Surgery
        before = self.origin(job)
        return any(not s.folds for s in job.of(Surgery)) or (
            before is not None and before.unfolded(store, job.where)
        )

    # ---- sizes ---------------------------------------------------------------------------------------------

    @staticmethod
    def row_tokens(job: Job) -> int | None:
        """Tokens of a row; None where its data counts in no tokens."""
        from trainwright.core.method import Data
        counts = [m.row_tokens() for m in job.of(Data)]
        return next((n for n in reversed(counts) if n), None)

    def batch_rows(self, job: Job) -> int:
        """Rows of a step, which ranks and micro-batches must share evenly."""
        from trainwright.core import sharding
        tokens = self.row_tokens(job)
        if self.batch_size is not None:
            rows = self.batch_size
        elif tokens is None:
            raise UserError(
                f"{job.where}: its data has no fixed row length: say batch_size (rows a step) instead of "
                "batch_tokens."
            )
        else:
            rows = (self.batch_tokens or max(STEP_TOKENS, tokens)) // tokens
            if not rows:
                raise UserError(
                    f"{job.where}: batch_tokens = {self.batch_tokens} is less than one row of {tokens} "
                    f"tokens."
                )
        parts = sharding.world() * self.accumulate
        if rows % parts:
            ranks = f"{sharding.world()} ranks and " if sharding.world() > 1 else ""
            raise UserError(
                f"{job.where}: a step of {rows} rows does not divide over {ranks}{self.accumulate} "
                f"micro-batches "
                f"(accumulate); take a multiple of {parts} rows"
                + (f" of {tokens} tokens each." if tokens else ".")
            )
        return rows

    def steps_of(self, job: Job, ctx: Context) -> int:
        """Optimizer steps of the whole stage; ``ctx`` tells where the data lie and how
        many rows a step has."""
        from trainwright.core.method import Data
        if self.steps is not None:
            return self.steps
        tokens = self.row_tokens(job)
        if self.epochs is not None:
            rows: int | None = next((n for m in job.of(Data) if (n := m.epoch(ctx))), None)
            if rows is None:
                raise UserError(f"{job.where}: its data has no epochs: say steps or tokens.")
            return max(1, round(self.epochs * rows / ctx.batch_rows))
        if tokens is None:
            raise UserError(f"{job.where}: its data does not count in tokens: say steps.")
        assert self.tokens is not None
        steps = self.tokens // (ctx.batch_rows * tokens)
        if not steps:
            raise UserError(
                f"{job.where}: tokens = {self.tokens} is less than one step of {ctx.batch_rows * tokens} "
                f"tokens."
            )
        return steps

    # ---- running -------------------------------------------------------------------------------------------

    def places(self, job: Job) -> list[tuple[str, list[Method]]]:
        from trainwright.core.method import KINDS

        acting = [
            (place, [m for m in job.methods if isinstance(m, tuple(KINDS[k] for k in kinds))])
            for place, kinds in PLACES
        ]
        return [(place, methods) for place, methods in acting if methods]

    def run(self, run: StageRun) -> dict[str, Any]:
        from trainwright.stages import _training
        return _training.train(run)

    def numbers(self, figures: dict[str, Any]) -> dict[str, float]:
        return figures["evaluation"]  # type: ignore[no-any-return]
