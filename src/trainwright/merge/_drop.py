"""Shared by the methods that drop entries of task vectors at random."""

from __future__ import annotations

import torch

from trainwright.core.context import Context


def generators(name: str, models: int, ctx: Context) -> list[torch.Generator]:
    """For each model one that says which entries of a tensor are dropped: the same for every method that
    asks, so that two of them with equal chances keep the same entries."""
    return [ctx.rng(f"drop/{model}/{name}", at=0) for model in range(models)]
