"""Clips the global norm of the gradients: a step that is too long is scaled down, its direction kept.

"On the difficulty of training recurrent neural networks" (arXiv 1211.5063). With N the 2-norm over all
entries of all parameters that ``params`` matches, on all ranks, every update u becomes
    u <- u min(1, norm / (N + 1e-6)).
Logs N as ``grad_norm``, which is that of all gradients where nothing clips. The factor stays a tensor, so
that nothing waits for the device. Name it before the optimizer: after Adam, whose steps have a size of their
own, it would clip something else.

Errors: a norm that is not above 0.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.method import State, Tensors, Update
from trainwright.core.settings import Positive


class ClipGradients(Update):
    """Clips the global norm of the gradients."""

    norm: Positive = 1.0
    """The largest 2-norm of all gradients together."""
    reads_grads: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {}
    off: ClassVar[dict[str, Any] | None] = {"norm": 1e30}

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        if not updates:
            return updates
        given = list(updates.values())
        total = sharding.norm(given)
        ctx.note("grad_norm", total)
        factor = (self.norm / (total + 1e-6)).clamp(max=1.0)
        if ctx.grads:  # another update reads the gradients as they came
            return dict(zip(updates, torch._foreach_mul(given, factor), strict=True))
        torch._foreach_mul_(given, factor)  # a second copy of all gradients costs more than the clip
        return updates
