"""DELLA: drop entries of task vectors at random, small ones more often, then merge as TIES does.

"DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based Sampling" (arXiv 2406.11617).
Of the n entries of a row of tau_i = W_i - W_base (what enters one output), the one of rank r (0 is the
smallest magnitude) is kept with the probability

    k_r = density + window (r / (n - 1) - 1/2),    tau'_ij = tau_ij / k_r if it is kept, else 0

so that expectations stay. Then for each entry a sign is elected and the models that have it are averaged:
W = W_base + scale tau_m (``elect = false`` adds them up instead). Vectors are one row. Entries are drawn by
tensor name, model and seed.

mergekit's ``epsilon`` is half of ``window``. Where ``window`` is 0, it is DARE with an election. Not where
DARE is not. Errors: no base; a probability outside 0 to 1; weights that are not one each.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from trainwright.core.context import Context
from trainwright.core.method import Arithmetic
from trainwright.merge._drop import generators
from trainwright.merge._tensors import PIECE, moved, one_each, the_base, together


class Della(Arithmetic):
    """Drops entries of task vectors, small ones more often, and merges with elected signs."""

    density: float = 0.5
    """Share of the entries that is kept, on average."""
    window: float = 0.2
    """By how much the chance of the largest entry of a row exceeds that of the smallest."""
    elect: bool = True
    """Merge with the sign election of TIES, instead of a sum."""
    scale: float = 1.0
    """Factor of the merged task vector."""
    weights: tuple[float, ...] = ()
    """Weight of each model's task vector, in the order of from.models; 1/n each by default."""
    example: ClassVar[dict[str, Any]] = {"density": 0.6, "window": 0.4}

    def __post_init__(self) -> None:
        if not self.density - self.window / 2 > 0 or not self.density + abs(self.window) / 2 <= 1:
            raise ValueError(
                f"density = {self.density} and window = {self.window} make chances from "
                f"{self.density - self.window / 2:g} to {self.density + self.window / 2:g}: they must be "
                "above 0 and at most 1."
            )

    def combine(self, name: str, tensors: list[Tensor], base: Tensor | None, ctx: Context) -> Tensor:
        base, weights = the_base(base, self.name), one_each(self.weights, len(tensors), self.name)
        draws = generators(name, len(tensors), ctx)
        width = max(1, base.shape[-1] if base.ndim > 1 else base.numel())

        def dropped(vectors: list[Tensor]) -> Tensor:
            for vector, draw in zip(vectors, draws, strict=True):
                rows = vector.view(-1, width)
                kept = self.chances(rows)
                rows.mul_(torch.rand(rows.shape, generator=draw) < kept).div_(kept)
            return together(vectors, weights, self.elect).mul_(self.scale)
        return moved(tensors, base, dropped, step=max(1, PIECE // width) * width)

    def chances(self, rows: Tensor) -> Tensor:
        """How likely each entry [rows, n] is kept."""
        n = rows.shape[1]
        order = rows.abs().argsort(dim=1, stable=True)
        places = torch.linspace(-0.5, 0.5, n) if n > 1 else torch.zeros(1)
        chances = torch.empty_like(rows)
        return chances.scatter_(1, order, (self.density + self.window * places).expand_as(rows))
