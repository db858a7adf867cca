"""AdamW: Adam's step with a weight decay that does not pass through the gradient; fused where it comes last.

"Decoupled Weight Decay Regularization" (arXiv 1711.05101) on "Adam" (arXiv 1412.6980). For each parameter p
with gradient g, at its own step t = 1, 2 …:
    m <- beta1 m + (1 - beta1) g,   v <- beta2 v + (1 - beta2) g^2,
    u = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay p,   p <- p - lr u.
The t of a parameter counts only the steps in which it has a gradient. The moments take two numbers per
parameter, of the parameter's dtype. Where nothing follows in the chain one fused kernel takes the step; a
``weight_decay`` that follows an AdamW without decay of its own is absorbed, so that this stays so.
Do not use it where that memory is missing: a factored or sign-based optimizer needs half of it or less.

Errors: settings out of range. State: ``param``: exp_avg, exp_avg_sq (shaped like p), step (a scalar).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from trainwright.core.context import Context
from trainwright.core.method import Optimizer, State, Tensors, Update
from trainwright.core.settings import Part, Rate
from trainwright.core.sharding import local
from trainwright.optim.weight_decay import WeightDecay


class Adamw(Optimizer):
    """AdamW: Adam's step, with a weight decay that does not pass through the gradient."""

    beta1: Part = 0.9
    """Share of the mean of gradients that is kept at each step."""
    beta2: Part = 0.95
    """Share of the mean of squared gradients that is kept at each step."""
    eps: Rate = 1e-8
    """Added to the root of the mean square, against division by zero."""
    weight_decay: Rate = 0.1
    """Share of the weights that is subtracted at a learning rate of 1."""
    decay_1d: bool = False
    """Whether biases and norms (parameters of one dimension) decay too."""
    default: ClassVar[bool] = True
    reads_grads: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {}

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        out = {}
        for name, grad in updates.items():
            p, leaf = params[name], _leaf(state, name, params[name])
            leaf["step"] += 1
            m = leaf["exp_avg"].lerp_(grad, 1 - self.beta1)
            v = leaf["exp_avg_sq"].mul_(self.beta2).addcmul_(grad, grad, value=1 - self.beta2)
            scale = (v / _unbias(self.beta2, leaf["step"])).sqrt_().add_(self.eps)
            out[name] = (m / _unbias(self.beta1, leaf["step"])).div_(scale)
            if decay := self.decay_of(p):
                out[name].add_(p, alpha=decay)
        return out

    def apply(self, updates: Tensors, params: Tensors, state: State, ctx: Context, lr: float) -> None:
        groups: dict[float, list[str]] = {}
        for name in updates:
            groups.setdefault(self.decay_of(params[name]), []).append(name)
        for decay, names in groups.items():
            leaves = [_leaf(state, n, params[n]) for n in names]
            ps = [local(params[n]) for n in names]
            adamw(
                ps,
                [_laid_like(local(updates[n]), p) for n, p in zip(names, ps, strict=True)],
                [local(leaf["exp_avg"]) for leaf in leaves],
                [local(leaf["exp_avg_sq"]) for leaf in leaves],
                [],
                [leaf["step"] for leaf in leaves],
                fused=True,
                amsgrad=False,
                maximize=False,
                beta1=self.beta1,
                beta2=self.beta2,
                lr=lr,
                weight_decay=decay,
                eps=self.eps,
            )

    def decay_of(self, p: Tensor) -> float:
        return self.weight_decay if self.decay_1d or p.ndim > 1 else 0.0

    def absorb(self, after: Update) -> Update | None:
        if self.weight_decay or not isinstance(after, WeightDecay) or after.params != self.params:
            return None
        return replace(self, weight_decay=after.rate, decay_1d=after.decay_1d)


def _leaf(state: State, name: str, p: Tensor) -> Tensors:
    """A parameter's state, created with its first gradient."""
    leaves: dict[str, Tensors] = state.setdefault("param", {})
    if name not in leaves:
        leaves[name] = {
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": torch.zeros_like(p),
            "step": torch.zeros((), dtype=torch.float32, device=p.device),
        }
    return leaves[name]


def _unbias(beta: float, step: Tensor) -> Tensor:
    """1 - beta^step, without the cancellation of the plain difference in float32 and without a device
    sync."""
    return -torch.expm1(step * math.log(beta)) if beta else torch.ones_like(step)


def _laid_like(t: Tensor, p: Tensor) -> Tensor:
    """The fused kernel reads all tensors in memory order: it would silently misread a transposed gradient."""
    return t if t.stride() == p.stride() else torch.empty_like(p).copy_(t)
