"""Which weights of a matrix to keep, given a score for each: shared by what prunes.

``Pruner`` has the settings and claims of a method that prunes; ``lm/structured.py`` adds neurons, heads and
whole blocks to them.
"""
from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainwright.core import masks
from trainwright.core.errors import UserError
from trainwright.lm.layers import as_linear_weight, linear_layers


@dataclass(frozen=True, kw_only=True)
class Pruner:
    """A method that removes weights of linear layers."""

    sparsity: float = 0.5
    """Share of the weights to remove."""
    pattern: str = ""
    """``N:M`` keeps N of every M neighbouring inputs, such as ``2:4``; it takes the place of ``sparsity``."""
    layers: str = "all-linear"
    """Which layers: ``all-linear``, ``attention``, ``mlp``, or a glob of module names."""
    neutral: ClassVar[bool] = False
    off: ClassVar[dict[str, Any] | None] = {"sparsity": 0.0}
    example: ClassVar[dict[str, Any]] = {"sparsity": 0.5}

    def __post_init__(self) -> None:
        check(self.sparsity, self.pattern)

    def claims(self, model: nn.Module) -> set[str]:
        return claimed(model, self.layers)


def check(sparsity: float, pattern: str, name: str = "pattern") -> None:
    """Raise a ValueError for settings that no mask can have; ``name`` is what the pattern is called there."""
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is the share of weights to remove, from 0 to below 1, not {sparsity}.")
    if pattern:
        n, m = numbers(pattern, name)
        if not 0 < n < m:
            raise ValueError(
                f"{name} = {pattern!r} must keep some weights of a group and not all, such as \"2:4\"."
            )


def numbers(pattern: str, name: str = "pattern") -> tuple[int, int]:
    """``2:4`` as (2, 4): weights kept of so many neighbours."""
    found = re.fullmatch(r"(\d{1,4}):(\d{1,4})", pattern)
    if found is None:
        raise ValueError(f"{name} must be such as \"2:4\" (weights kept : neighbours), not {pattern!r}.")
    return int(found[1]), int(found[2])


def keep(scores: Tensor, sparsity: float, pattern: str, rows: bool) -> Tensor:
    """The mask (true: kept) that removes the lowest scores.

    Args:
        scores: [out, in], one for each weight.
        sparsity: share to remove; without meaning where there is a ``pattern``.
        pattern: ``N:M`` keeps the N best of every M neighbours along the inputs.
        rows: compare within each output (row) instead of within the whole matrix.

    Raises:
        UserError: the number of inputs is no multiple of M.
    """
    if pattern:
        n, m = numbers(pattern)
        if scores.shape[1] % m:
            raise UserError(
                f"pattern = {pattern!r} takes groups of {m} inputs, and a layer has {scores.shape[1]}."
            )
        groups = scores.view(len(scores), -1, m)
        best = groups.topk(n, dim=-1).indices
        return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, best, True).view_as(scores)
    flat = scores if rows else scores.reshape(1, -1)
    remove = flat.argsort(dim=1, stable=True)[:, :round(sparsity * flat.shape[1])]
    return torch.ones_like(flat, dtype=torch.bool).scatter_(1, remove, False).view_as(scores)


def prune(model: nn.Module, name: str, layer: nn.Module, kept: Tensor) -> None:
    """Remove the weights of a linear layer that are not ``kept`` ([out, in]), now and in all that
    is made of the model."""
    transposed = as_linear_weight(layer) is not layer.weight
    masks.keep(model, f"{name}.weight", (kept.T if transposed else kept).contiguous())


def claimed(model: nn.Module, layers: str) -> set[str]:
    """The weights of the layers that ``layers`` means, as claims."""
    return {f"{name}.weight" for name in linear_layers(model, layers)}
