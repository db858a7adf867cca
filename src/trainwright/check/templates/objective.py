"""TheMethod: what it does, in one line (paper title, arXiv id).

The equation, with shapes and units. When not to use it. Errors that it raises.
"""
from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.method import Batch, Objective, State
from trainwright.lm.losses import token_losses, trained_tokens


class TheMethod(Objective):
    """What it does, in one line."""

    strength: float = 1.0
    """What the setting means, with its unit."""
    example: ClassVar[dict[str, Any]] = {"strength": 0.5}

    def count(self, batch: Batch) -> float:
        return trained_tokens(batch)

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        return self.strength * token_losses(model, batch, ctx)
