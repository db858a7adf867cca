"""Shared by the arithmetic of weights: sums, task vectors, and the election of a sign."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trainwright.core.errors import UserError

PIECE = 1 << 20
"""Entries that are looked at together."""

def weighted_sum(tensors: list[Tensor], weights: list[float]) -> Tensor:
    """The sum of ``weights[i] * tensors[i]``."""
    total = tensors[0] * weights[0]
    for t, w in zip(tensors[1:], weights[1:], strict=True):
        total.add_(t, alpha=w)
    return total


def one_each(weights: tuple[float, ...], models: int, name: str) -> list[float]:
    """The weight of each model; by default equal shares of 1.

    Raises:
        UserError: more or fewer weights than models.
    """
    if weights and len(weights) != models:
        raise UserError(
            f"{name}: weights has {len(weights)} numbers for {models} models (from.models): give one each, "
            "or none."
        )
    return list(weights) or [1 / models] * models


def the_base(base: Tensor | None, name: str) -> Tensor:
    """The tensor of the model that the others were trained from.

    Raises:
        UserError: the recipe names none.
    """
    if base is None:
        raise UserError(
            f"{name} needs the model that the others were trained from: write "
            'from = { models = […], base = "NAME" }.'
        )
    return base


def moved(
    tensors: list[Tensor], base: Tensor, work: Callable[[list[Tensor]], Tensor], step: int = PIECE
) -> Tensor:
    """The base and what ``work`` makes of the task vectors, which it is given ``step`` entries at a time, as
    vectors of its own: of a large tensor there are no copies."""
    made = torch.empty(base.numel(), dtype=base.dtype)
    flat, begin = [t.reshape(-1) for t in tensors], base.reshape(-1)
    for start in range(0, len(made), step):
        here = begin[start:start + step]
        made[start:start + step] = work([t[start:start + step] - here for t in flat]).add_(here)
    return made.view(base.shape)


def together(vectors: list[Tensor], weights: list[float], elect: bool, mean: bool = True) -> Tensor:
    """The weighted sum of task vectors; or, after TIES, of each entry the weighted mean (or else the sum)
    over those of them that have the elected sign there, 0 where none has.

    The elected sign is that of the weighted sum; where that is exactly zero, it is plus. ``vectors`` are
    overwritten in an election.
    """
    if not elect:
        return weighted_sum(vectors, weights)
    up = weighted_sum(vectors, weights) >= 0
    total = torch.zeros_like(vectors[0])
    share = torch.zeros_like(total)
    for vector, weight in zip(vectors, weights, strict=True):
        agrees = (vector > 0) == up
        agrees &= vector != 0
        total.add_(vector.mul_(agrees), alpha=weight)
        share.add_(agrees, alpha=weight)
    if not mean:
        return total
    return total.div_(share.masked_fill_(share.abs() < SHARE, 1))


SHARE = 1e-8
"""Sum of weights below which nothing is divided by it."""
