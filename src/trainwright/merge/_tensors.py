"""Shared by the arithmetic of weights: weighted sums and one weight per model."""

from __future__ import annotations

from torch import Tensor

from trainwright.core.errors import UserError


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
