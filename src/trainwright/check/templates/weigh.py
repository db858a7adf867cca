"""TheMethod: what it does, in one line (paper title, arXiv id).

The equation, with shapes and units. When not to use it. Errors that it raises.
"""
from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from trainwright.core.context import Context
from trainwright.core.method import Batch, State, Weigh


class TheMethod(Weigh):
    """What it does, in one line."""

    strength: float = 1.0
    """What the setting means, with its unit."""
    example: ClassVar[dict[str, Any]] = {"strength": 0.5}

    def weigh(self, values: Tensor, batch: Batch, state: State, ctx: Context) -> Tensor:
        return (values > 0) * self.strength
