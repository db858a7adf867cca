"""Model Breadcrumbs: of each layer's task vector, leave out the outliers and the many small entries.

"Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks" (arXiv 2312.06795). With
tau_i = W_i - W_base, per tensor:

    m_i = 1 for entries that are neither among the ``outliers`` (a share) largest by magnitude
          nor beyond the ``density`` next to them,    W = W_base + scale sum_i w_i m_i * tau_i

with w_i = 1/n by default; the paper has w_i = 1 and one scale for all, about 0.3. ``density`` is the share
that stays (the paper keeps 0.1 to 0.15, and leaves out 0.01 of outliers). Of entries of equal magnitude at
the lower border all are kept, at the upper none.

Not for a single model that should stay whole: its largest changes are what it has learned best. Errors: no
base; shares that exceed 1 together; weights that are not one each.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from trainwright.core.context import Context
from trainwright.core.method import Arithmetic
from trainwright.merge._ranks import at_ranks, slices
from trainwright.merge._tensors import moved, one_each, the_base, weighted_sum


class Breadcrumbs(Arithmetic):
    """Adds task vectors without their largest and smallest entries."""

    density: float = 0.14
    """Share of each tensor's entries that is kept."""
    outliers: float = 0.01
    """Share of the entries that is left out as too large."""
    scale: float = 1.0
    """Factor of the merged task vector."""
    weights: tuple[float, ...] = ()
    """Weight of each model's task vector, in the order of from.models; 1/n each by default."""
    example: ClassVar[dict[str, Any]] = {"density": 0.5, "outliers": 0.1}

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1 - self.outliers or self.outliers < 0:
            raise ValueError(
                f"density = {self.density} and outliers = {self.outliers} must be shares that make at most 1."
            )

    def combine(self, name: str, tensors: list[Tensor], base: Tensor | None, ctx: Context) -> Tensor:
        base, weights = the_base(base, self.name), one_each(self.weights, len(tensors), self.name)
        ranges = [self.kept(t - base) for t in tensors]

        def masked(vectors: list[Tensor]) -> Tensor:
            for vector, (low, high) in zip(vectors, ranges, strict=True):
                size = vector.abs()
                vector.masked_fill_((size < low) | (size >= high), 0)
            return weighted_sum(vectors, weights).mul_(self.scale)
        return moved(tensors, base, masked)

    def kept(self, vector: Tensor) -> tuple[float, float]:
        """The magnitudes from which on, and below which, entries of a task vector are kept."""
        total = vector.numel()
        large, kept = int(self.outliers * total), int(self.density * total)
        if not kept:
            return math.inf, math.inf
        low, *high = at_ranks(slices(vector), [total - large - kept, *([total - large] if large else [])])
        if high and high[0] > low:
            return low, high[0]
        above = torch.nextafter(torch.tensor(low), torch.tensor(math.inf)).item()
        return low, above if high else math.inf
