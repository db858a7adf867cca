"""SGD-SaI: SGD with momentum, scaled for each tensor by the signal-to-noise ratio of its first gradient.

"No More Adam: Learning Rate Scaling at Initialization is All You Need" (arXiv 2412.11768). For each
parameter tensor p of n entries, with g_1 the first gradient that reaches this step and is not zero
everywhere (accumulated, and clipped if ``clip_gradients`` comes before),
    gsnr = ||g_1||_2 / (std(g_1) + eps),     std unbiased, over all entries of the tensor,
    m_1 = g_1,   m_t = momentum m_{t-1} + (1 - momentum) g_t,     an average, not corrected for its start,
    p <- p - lr (gsnr m_t + weight_decay p).
gsnr is one number per tensor and never changes; it is sqrt(n) for noise of mean zero. It does not scale the
decay. The state takes half the bytes of AdamW's.

It differs from the authors' code where that breaks down. A tensor whose entries are all equal, in
particular one with a single entry, has no deviation, and the code would scale it by 1/eps: it gets
sqrt(n). A tensor whose first gradients are zero (A of LoRA, next to a B of zeros) would get gsnr = 0 and
never move: it waits for its first nonzero gradient. ``momentum = 0`` works. As in ``adamw``, biases and
norms do not decay unless ``decay_1d`` is set.
Do not use it where the first batch is unlike the rest: it decides the scale of every tensor. The best rate
is not AdamW's: search it anew.

Errors: settings out of range. State: ``param``: momentum_buffer (shaped like p), gsnr (a scalar).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.method import Optimizer, State, Tensors
from trainwright.core.settings import Part, Rate


class SgdSai(Optimizer):
    """SGD with momentum, scaled for each tensor by the signal-to-noise ratio of its first gradient."""

    lr: float = 1e-2
    """Peak learning rate, before gsnr; a schedule multiplies it."""
    momentum: Part = 0.9
    """Share of the mean of gradients that is kept at each step."""
    eps: Rate = 1e-8
    """Added to the deviation of the first gradient."""
    weight_decay: Rate = 0.01
    """Share of the weights that is subtracted at a learning rate of 1."""
    decay_1d: bool = False
    """Whether biases and norms (parameters of one dimension) decay too."""
    reads_grads: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {"lr": 1e-3}

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        out = {}
        for name, grad in updates.items():
            leaf = self.remember(name, grad, state)
            out[name] = leaf["momentum_buffer"] * leaf["gsnr"] if leaf else torch.zeros_like(grad)
            if decay := self.decay_of(params[name]):
                out[name].add_(params[name], alpha=decay)
        return out

    def apply(self, updates: Tensors, params: Tensors, state: State, ctx: Context, lr: float) -> None:
        for name, grad in updates.items():
            leaf, p = self.remember(name, grad, state), sharding.local(params[name])
            if decay := self.decay_of(params[name]):
                p.mul_(1 - lr * decay)
            if leaf:  # without a copy of the step, and without waiting for the device
                p.addcmul_(sharding.local(leaf["momentum_buffer"]), leaf["gsnr"], value=-lr)

    def remember(self, name: str, grad: Tensor, state: State) -> Tensors:
        """A parameter's state after this gradient; empty as long as all gradients were zero."""
        leaves: dict[str, Tensors] = state.setdefault("param", {})
        if name in leaves:
            sharding.local(leaves[name]["momentum_buffer"]).lerp_(sharding.local(grad), 1 - self.momentum)
            return leaves[name]
        whole = sharding.full(grad)
        if not whole.any():
            return {}
        leaves[name] = {"momentum_buffer": grad.clone(), "gsnr": self.gsnr(whole)}
        return leaves[name]

    def gsnr(self, grad: Tensor) -> Tensor:
        """Signal-to-noise ratio of a whole gradient: a scalar in float32."""
        grad = grad.float()
        noise = grad.std() if grad.numel() > 1 else torch.zeros_like(grad).sum()
        alike = torch.full_like(noise, math.sqrt(grad.numel()))
        return torch.where(noise > 0, grad.norm() / (noise + self.eps), alike)

    def decay_of(self, p: Tensor) -> float:
        return self.weight_decay if self.decay_1d or p.ndim > 1 else 0.0
