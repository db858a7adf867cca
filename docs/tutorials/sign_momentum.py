"""Sign momentum: each weight moves by the learning rate, against the sign of its averaged gradient.

"signSGD: Compressed Optimisation for Non-Convex Problems" (arXiv 1802.04434), there called Signum.

    m <- momentum m + (1 - momentum) g,    u = sign(m)

g, m and u have the shape of the parameter. Not for small batches: the sign of noise is a full step.
"""
from __future__ import annotations

import torch

from trainwright.core.context import Context
from trainwright.core.method import Optimizer, State, Tensors
from trainwright.core.settings import Part


class SignMomentum(Optimizer):
    """The sign of an average of gradients."""

    momentum: Part = 0.9
    """Share of the average that is kept at each step."""

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        kept = state.setdefault("param", {})
        for name, gradient in updates.items():
            leaf = kept.setdefault(name, {"average": torch.zeros_like(gradient)})
            leaf["average"].lerp_(gradient, 1 - self.momentum)
        return {name: kept[name]["average"].sign() for name in updates}
