"""TheMethod: what it does, in one line (paper title, arXiv id).

The equation, with shapes and units. When not to use it. Errors that it raises.
"""
from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from trainwright.core.context import Context
from trainwright.core.method import Arithmetic


class TheMethod(Arithmetic):
    """What it does, in one line."""

    strength: float = 1.0
    """What the setting means, with its unit."""
    example: ClassVar[dict[str, Any]] = {"strength": 0.5}

    def combine(self, name: str, tensors: list[Tensor], base: Tensor | None, ctx: Context) -> Tensor:
        start = tensors[0] if base is None else base
        mean = sum(tensors[1:], start=tensors[0]) / len(tensors)
        return start + self.strength * (mean - start)
