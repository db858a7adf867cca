"""SLERP: interpolate two models along an arc, which keeps the norm that a straight line would lower.

Spherical linear interpolation (K. Shoemake, "Animating Rotation with Quaternion Curves", SIGGRAPH 1985),
applied to each tensor as one long vector. With Omega the angle between v0 and v1,

    v = sin((1 - t) Omega) / sin(Omega) v0 + sin(t Omega) / sin(Omega) v1

Where the two are nearly collinear (sin(Omega) < 1e-4: the arc is a line up to rounding, or not unique) or
one is zero, it is (1 - t) v0 + t v1. Computed in float32 and returned in the dtype of the first model;
tensors that are not floating point are the first model's. It takes exactly two models; for more see
``interpolate``.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Arithmetic
from trainwright.merge._tensors import weighted_sum


class Slerp(Arithmetic):
    """Spherical interpolation. Raises UserError unless there are two models."""

    t: float = 0.5
    """Position between the two: 0 is the first model of from.models, 1 the second."""
    example: ClassVar[dict[str, Any]] = {"t": 0.3}

    def __post_init__(self) -> None:
        if not 0 <= self.t <= 1:
            raise ValueError(f"t must be from 0 to 1, not {self.t}.")

    def combine(self, name: str, tensors: list[Tensor], base: Tensor | None, ctx: Context) -> Tensor:
        if len(tensors) != 2:
            raise UserError(
                f"slerp goes from one model to another: from.models must name 2, not {len(tensors)}."
            )
        omega, weights = angle(*tensors), [1 - self.t, self.t]
        if math.sin(omega) >= 1e-4:
            weights = [math.sin(w * omega) / math.sin(omega) for w in weights]
        return weighted_sum(tensors, weights)


def angle(a: Tensor, b: Tensor) -> float:
    """The angle between two tensors as vectors, 0 if one is zero. Exact for small angles, unlike arccos."""
    norms = torch.linalg.vector_norm(a), torch.linalg.vector_norm(b)
    if not all(norms):
        return 0.0
    a, b = a / norms[0], b / norms[1]
    return 2 * math.atan2(float(torch.linalg.vector_norm(a - b)), float(torch.linalg.vector_norm(a + b)))
