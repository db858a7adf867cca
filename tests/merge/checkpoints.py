"""Checkpoints of a few tensors, and merges of them as a stage makes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from trainwright.core.context import Context
from trainwright.core.method import Arithmetic, Tensors
from trainwright.families.tensors import Reader
from trainwright.stages.merge import streamed

SHAPES = {"embed.weight": (40, 12), "block.attn.weight": (12, 12), "block.mlp.weight": (30, 12),
          "norm": (12,)}


def drawn(seed: int, size: float = 1.0, around: Tensors | None = None) -> Tensors:
    """Tensors of ``SHAPES``, drawn with this seed, added to others."""
    draw = torch.Generator().manual_seed(seed)
    made = {n: size * torch.randn(shape, generator=draw) for n, shape in SHAPES.items()}
    return made if around is None else {n: t + around[n] for n, t in made.items()}


def tuned(models: int, size: float = 0.1) -> tuple[list[Tensors], Tensors]:
    """Some models, and the base that they were made from."""
    base = drawn(100)
    return [drawn(i, size, base) for i in range(models)], base


def saved(folder: Path, tensors: Tensors) -> Path:
    """A checkpoint folder of these tensors."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    save_file(tensors, folder / "model.safetensors")
    return folder


def context(folder: Path, models: Sequence[Tensors], base: Tensors | None, seed: int = 0) -> Context:
    """What a merge of these gives its methods."""
    inputs = {"models": [saved(folder / f"model{i}", m) for i, m in enumerate(models)]}
    if base is not None:
        inputs["base"] = [saved(folder / "base", base)]
    (folder / "work").mkdir()
    return Context(seed=seed, inputs=inputs, folder=folder / "work")


def merge(method: Arithmetic, ctx: Context) -> Tensors:
    """The merged tensors, made as a stage makes them."""
    models = [Reader(f, "here") for f in ctx.inputs["models"]]
    base = Reader(ctx.inputs["base"][0], "here") if "base" in ctx.inputs else None
    method.prepare(ctx)
    made = {}
    for name in models[0].names:
        entry = models[0].entry(name)
        pieces: list[Tensor] = list(streamed(name, models, base, [method], ctx, entry.dtype))
        made[name] = torch.cat([p.reshape(-1) for p in pieces]).view(entry.shape)
    return made


def flat(tensors: Tensors) -> Tensor:
    """All entries, in the order of the names."""
    return torch.cat([tensors[n].reshape(-1) for n in sorted(tensors)])
