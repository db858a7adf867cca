"""Shared by the methods that drop entries of task vectors at random."""

from __future__ import annotations

import torch
from torch import Tensor

from trainwright.core.context import Context


def drawn(shape: torch.Size, name: str, model: int, ctx: Context) -> Tensor:
    """A number from 0 to 1 for each entry of a tensor of one model: the same for every method that asks, so
    that two of them with equal chances keep the same entries."""
    return torch.rand(shape, generator=ctx.rng(f"drop/{model}/{name}", at=0))
