"""TheMethod: what it does, in one line (paper title, arXiv id).

The equation, with shapes and units. When not to use it. Errors that it raises.
"""
from __future__ import annotations

from typing import Any, ClassVar

from trainwright.core.context import Context
from trainwright.core.method import Optimizer, State, Tensors


class TheMethod(Optimizer):
    """What it does, in one line."""

    strength: float = 1.0
    """What the setting means, with its unit."""
    example: ClassVar[dict[str, Any]] = {"strength": 0.5}

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        return {name: self.strength * update for name, update in updates.items()}
