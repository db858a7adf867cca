"""Weighted average of models: linear interpolation of two, a uniform or weighted soup of several.

"Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference
time" (arXiv 2203.05482).

    W = sum_i w_i W_i,    sum_i w_i = 1    (w_i = 1/n by default)

Computed in float32 and returned in the dtype of the first model; tensors that are not floating point are
the first model's. A weight below 0 or above 1 extrapolates.
Do not use it for models that were trained separately from the start: their weights do not match.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor

from trainwright.core.context import Context
from trainwright.core.method import Arithmetic
from trainwright.merge._tensors import one_each, weighted_sum


class Interpolate(Arithmetic):
    """Weighted average. Raises UserError unless there is one weight per model and they add up to 1."""

    weights: tuple[float, ...] = ()
    """Share of each model, in the order of from.models; equal by default."""
    entrywise: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        if self.weights and not math.isclose(math.fsum(self.weights), 1, abs_tol=1e-6):
            raise ValueError(
                f"weights must add up to 1, and {list(self.weights)} add up to {math.fsum(self.weights):g}."
            )

    def combine(self, name: str, tensors: list[Tensor], base: Tensor | None, ctx: Context) -> Tensor:
        return weighted_sum(tensors, one_each(self.weights, len(tensors), self.name))
