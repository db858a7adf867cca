"""A merge: one model made of several, tensor by tensor."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainwright.core.errors import UserError, located
from trainwright.core.settings import Seed
from trainwright.core.stage import CORPUS, MODEL, MODELS, Stage, check_seed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trainwright.core.context import Context
    from trainwright.core.method import Arithmetic
    from trainwright.families import alike, tensors
    from trainwright.life.jobs import Job
    from trainwright.life.stage_run import StageRun
    from trainwright.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class MergeStage(Stage):
    """One model made of several, one tensor name at a time, streamed to disk."""

    roles = {"models": MODELS._replace(needed=True), "base": MODEL, "data": CORPUS}
    acting = ("Arithmetic",)
    place = "combine"
    doing = "merging"

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """The type of the merged weights, which are computed in float32; default: that of the base, or of the
    first model. In bfloat16 about a fifth of a small move is lost."""
    seed: Seed | None = None
    """Seed of this stage; default: the recipe's."""

    def check(self, where: str) -> None:
        check_seed(self.seed, where)
        if not self.methods:
            raise UserError(f"{where}: a merge needs a method, for example {{ use = \"interpolate\" }}.")

    def examine(self, job: Job, store: Store) -> None:
        from trainwright.families import tensors
        for source in (s for s in job.sources if "corpus" not in (s.job.stage.makes if s.job else "")):
            if source.unfolded(store, job.where):
                raise UserError(
                    f"{job.where}: {source.name} has a part that cannot be folded into its weights, and only "
                    f"plain "
                    "checkpoints can be merged."
                )
        if not self._twins(job, store):
            from trainwright.families import alike
            with located(job.where):
                alike.check_alike(self._sides(job, store))
        like = job.source("base") or job.inputs["models"][0]
        if self.dtype is None and like.ready(store) and not like.location.startswith("hf://"):
            coarse = tensors.Reader(like.path(store, job.where), job.where).coarse()
            job.told += (
                [
                    f"{like.name} is {coarse.lower()}, in which about a fifth of a small move of its weights "
                    f"is lost; "
                    "dtype = \"float32\" keeps it"
                ]
                if coarse
                else []
            )

    @staticmethod
    def _twins(job: Job, store: Store) -> bool:
        """Whether the models and the base are there and differ in nothing but their weights."""
        from trainwright.families import tensors
        sources = (*job.inputs["models"], *job.inputs.get("base", ()))
        here = [s for s in sources if not s.location.startswith("hf://") and s.ready(store)]
        folders = [s.path(store, job.where) for s in here]
        return len(here) == len(sources) and all(map(Path.is_dir, folders)) and tensors.same_rest(folders)

    @staticmethod
    def _sides(job: Job, store: Store) -> list[alike.Side]:
        """The models and the base, as far as they are known."""
        from trainwright.families import alike
        found = []
        for source in (*job.inputs["models"], *job.inputs.get("base", ())):
            if (config := source.config(store, job.where)) is not None:
                there = source.path(store, job.where) if source.ready(store) else None
                found.append(alike.Side(source.name, config, there))
        return found

    def config(self, job: Job, store: Store) -> Any:
        return job.inputs["models"][0].config(store, job.where)

    def closed(self, job: Job) -> bool:
        return job.inputs["models"][0].closed

    def vocabulary(self, job: Job) -> int | None:
        return job.vocabulary("models")

    def run(self, run: StageRun) -> dict[str, Any]:
        from trainwright.core import sharding
        run.started({})
        return sharding.led(partial(self._merge, run)) or {}

    def _merge(self, run: StageRun) -> dict[str, Any]:
        import torch

        from trainwright.core.method import Arithmetic
        from trainwright.families import tensors
        job, ctx = run.job, run.context()
        folders, names = run.inputs["models"], ctx.names["models"]
        base, twins = run.folder("base"), self._twins(job, run.store)
        for line in job.told if twins else (*job.told, *self._differences(run)):
            run.listener.say(f"{self.name}: {line}")
        sources = [tensors.Reader(f, job.where) for f in folders]
        before = tensors.Reader(base, job.where) if base else None
        for source, name in zip(sources[1:], names[1:], strict=True):
            sources[0].check_same(source, names[0], name, job.where)
        if before is not None:
            sources[0].check_same(before, names[0], "base", job.where)
        methods: list[Arithmetic] = job.of(Arithmetic)
        for method in methods:
            method.prepare(ctx)
        made = self._made(before or sources[0])
        kinds = {entry.name: entry.dtype for entry in made}
        torch.empty(KEPT, dtype=torch.uint8)                    # taken and given back
        with tensors.Writer(run.out, made) as writer:
            for name in writer.order:
                writer.add(name, streamed(name, sources, before, methods, ctx, kinds[name]))
            size = writer.close()
        for method in methods:
            method.leave(run.out, ctx)
        tensors.copy_rest(folders[0], run.out)
        if self.dtype is not None or not twins:
            self._say(run)
        self._keep_masks(run, [*folders, *([base] if base else [])])
        run.keep(ctx)
        return {"models": names, "parameters": writer.parameters, "stored_bytes": size}

    def _differences(self, run: StageRun) -> list[str]:
        """Lines about what the models differ in and what does not matter."""
        from trainwright.families import alike
        return alike.check_alike(self._sides(run.job, run.store))

    def _say(self, run: StageRun) -> None:
        """Let the configs say at which tokens the model ends, and what type its numbers have."""
        from trainwright.families import alike
        alike.write_ends(run.out, alike.all_ends(self._sides(run.job, run.store)), self.dtype)

    def _keep_masks(self, run: StageRun, folders: Sequence[Path]) -> None:
        """A mask that all models have is the merged model's: what all of them lack is zero in it, too."""
        import shutil

        from trainwright.core import masks
        held = {f.read_bytes() if (f := folder / masks.FILE).is_file() else b"" for folder in folders}
        if len(held) == 1 and held != {b""}:
            shutil.copy(folders[0] / masks.FILE, run.out / masks.FILE)
        elif held != {b""}:
            run.listener.say(f"{self.name}: not all models were pruned alike, and their merge has no mask")

    def _made(self, like: tensors.Reader) -> list[tensors.Entry]:
        """The tensors that will be written."""
        import torch
        dtype = getattr(torch, self.dtype) if self.dtype else None
        entries = [like.entry(name) for name in like.names]
        return [e._replace(dtype=dtype) if dtype and e.dtype.is_floating_point else e for e in entries]


KEPT = (1 << 25) - (1 << 16)
"""Bytes that the C library keeps from now on for the next piece, once it was given as many back at a time;
otherwise it asks the system for new pages for each (glibc's mallopt(3), M_MMAP_THRESHOLD)."""
PIECE = 1 << 20
"""Entries that are combined at once, where a method can do with a part of a tensor."""


def streamed(
    name: str,
    sources: Sequence[tensors.Reader],
    before: tensors.Reader | None,
    methods: Sequence[Arithmetic],
    ctx: Context,
    dtype: torch.dtype,
) -> Iterator[Tensor]:
    """The tensor of this name of the merged model, in pieces where all methods work entry by entry."""
    whole = sources[0].entry(name).numel
    if not all(method.entrywise for method in methods):
        old = None if before is None else before.get(name)
        yield combined(name, [s.get(name) for s in sources], old, methods, ctx, dtype)
        return
    for start in range(0, whole, PIECE):
        old = None if before is None else before.piece(name, start, start + PIECE)
        held = [s.piece(name, start, start + PIECE) for s in sources]
        yield combined(name, held, old, methods, ctx, dtype)


def combined(
    name: str,
    tensors: Sequence[Tensor],
    base: Tensor | None,
    methods: Sequence[Arithmetic],
    ctx: Context,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """What a chain of methods makes of the tensors of one name, in this type, or else in that of the
    base, or of the first model.

    Tensors that are not floating point are the base's, or the first model's.
    """
    import torch
    like = tensors[0] if base is None else base
    if not like.is_floating_point():
        return like.clone()

    def exact(t: Tensor) -> Tensor:
        return t.to(torch.promote_types(t.dtype, torch.float32))

    held, start = [exact(t) for t in tensors], None if base is None else exact(base)
    for method in methods:
        held = [method.combine(name, held, start, ctx)]
    return held[0].to(dtype or like.dtype)

