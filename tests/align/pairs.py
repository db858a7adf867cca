"""Preference pairs for the tests of alignment: a corpus, batches, models that differ."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.method import UNTRAINED, Batch
from trainwright.data.order.examples import Examples

LENGTH = 32


def context(rows: int = 8, folder: Path | None = None) -> Context:
    ctx = tiny.context(folder or tiny.place())
    ctx.batch_rows, ctx.policy = rows, tiny.model()
    return ctx


def batch(rows: int = 8, **settings: Any) -> Batch:
    """Pairs of the small corpus."""
    given = {"fields": ("chosen", "rejected"), "domains": ("chat",), "length": LENGTH} | settings
    data, ctx = Examples(**given), context(rows)
    return data.next(lambda: {}, data.init(ctx.policy, ctx), ctx)


def moved(seed: int = 5, far: float = 0.02) -> nn.Module:
    """The small model, a little away from where it starts: neither all alike nor far from the reference."""
    model, g = tiny.model(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += far * torch.randn(p.shape, generator=g)
    return model


def repeated(one: Batch, *, equal: int | None = None, without: int | None = None) -> Batch:
    """The batch with the answers of one pair equal, and without those of another."""
    made = {n: t.clone() if isinstance(t, torch.Tensor) else t for n, t in one.items()}
    for part in ("ids", "attention_mask", "targets") if equal is not None else ():
        made[f"rejected_{part}"][equal] = made[f"chosen_{part}"][equal]
    if without is not None:
        made["chosen_targets"][without] = UNTRAINED
    return made
