"""Decoupled weight decay: each step shrinks the weights by a share that does not pass through the gradient.

"Decoupled Weight Decay Regularization" (arXiv 1711.05101). It adds ``rate`` times the weights p to the
update u, of which the loop subtracts lr times:
    u <- u + rate p,   so that   p <- p - lr u - lr rate p.
Name it after the optimizer; before it the decay would be scaled like the gradient (L2 regularization,
which Adam turns into something else). An ``adamw`` with ``weight_decay = 0`` absorbs it and stays fused.
``rate`` has no unit.

Errors: a negative rate.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from trainwright.core.context import Context
from trainwright.core.method import State, Tensors, Update
from trainwright.core.settings import Rate


class WeightDecay(Update):
    """Decoupled weight decay."""

    rate: Rate = 0.1
    """Share of the weights that is subtracted at a learning rate of 1."""
    decay_1d: bool = False
    """Whether biases and norms (parameters of one dimension) decay too."""
    reads_grads: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {}
    off: ClassVar[dict[str, Any] | None] = {"rate": 0.0}

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        names = [n for n in updates if self.decay_1d or params[n].ndim > 1]
        if not names or not self.rate:
            return updates
        decayed = torch._foreach_add([updates[n] for n in names], [params[n] for n in names], alpha=self.rate)
        return updates | dict(zip(names, decayed, strict=True))
