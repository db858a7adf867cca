"""L4Q: train LoRA and the grid of the weights together, the quantizer acting on what both make.

"L4Q: Parameter Efficient Quantization-Aware Training on Large Language Models via LoRA-wise LSQ" (arXiv
2402.04902). With W [out, in] of a linear layer, frozen, B A [out, rank][rank, in], and for each
``group_size`` neighbouring inputs of an output a step s and an offset b,

    w  = (W + alpha / rank B A - b) / s,        q = round(clamp(w, -2^(bits - 1), 2^(bits - 1) - 1)),
    W' = s q + b,                               y = W' x.

Rounding lets gradients through, and so (LSQ), summed over a group with G = dL/dW',

    dL/ds = G (q - w) inside the range, G q outside;   dL/db = G outside, 0 inside;
    dL/d(B A) = alpha / rank G inside, 0 outside.

A starts uniform, B = 0, b = 0 and s such that the range just holds all weights of a group: training starts at
rounding to nearest. What is left in the end is W' alone: no adapter, and ``2^bits`` values in a group.

The steps are not scaled by the number of weights, as LSQ's are: the paper does not say that it does. Left out
are its warm-up on the rounded base, and a backward pass that never holds G of a layer: here it is held for
that layer's own time. The weights stay floating-point numbers; where b is not a multiple of s no format of
whole zeros holds them. Not where the base must be small in training: W is whole.
Errors: a group that does not fill a layer; ``layers`` matches no linear layer, or one that has an adapter.
"""
from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.method import ParamMap, Surgery
from trainwright.core.settings import Count
from trainwright.lm import quantized
from trainwright.lm.layers import as_linear_weight, in_out, linear_layers
from trainwright.lm.reweighted import Reweighted, Reweighting


class L4qLinear(Reweighted):
    """A linear layer that computes with the rounded sum of its weights and an addition."""

    def __init__(self, layer: nn.Module, settings: L4q, rng: torch.Generator) -> None:
        super().__init__(layer, settings)
        start = torch.empty(settings.rank, self.in_features)
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=rng)
        weight = as_linear_weight(self).detach().float()
        self.lora_A = nn.Parameter(start.to(weight.device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, settings.rank, device=weight.device))
        groups = weight.unflatten(1, (-1, settings.group_size or self.in_features))
        step = torch.maximum(groups.amin(-1) / settings.low, groups.amax(-1) / settings.high)
        self.step = nn.Parameter(torch.where(step > 0, step, torch.finfo(step.dtype).eps))
        self.offset = nn.Parameter(torch.zeros_like(step))

    def matrix(self) -> Tensor:
        own = self.settings
        added = (self.lora_B @ self.lora_A) * (own.alpha / own.rank)
        whole = (as_linear_weight(self).float() + added).unflatten(1, (self.step.shape[1], -1))
        step, offset = self.step[..., None], self.offset[..., None]
        return OnGrid.apply(whole, step, offset, own.low, own.high).flatten(1)           # type: ignore[no-any-return]


class OnGrid(torch.autograd.Function):
    """Weights [out, groups, in of a group] on their grid. The gradients are written down, not derived: a sum
    of G and -G would leave the offset a gradient of rounding errors, of which Adam makes whole steps."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, step: Tensor, offset: Tensor, low: int, high: int) -> Tensor:
        w = (whole - offset) / step
        q = w.clamp(low, high).round_()
        ctx.save_for_backward(w, q)
        ctx.ends = low, high
        return q * step + offset

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:                   # type: ignore[override]
        (w, q), (low, high) = ctx.saved_tensors, ctx.ends
        inside = (w >= low) & (w <= high)
        to_step = (grad * torch.where(inside, q - w, q)).sum(-1, keepdim=True)
        return grad * inside, to_step, grad.masked_fill(inside, 0).sum(-1, keepdim=True), None, None


class L4q(Reweighting, Surgery):
    """LoRA and the quantizer trained as one."""

    bits: quantized.Bits = 4
    """Bits of a weight, 2 to 8."""
    group_size: quantized.Group = 0
    """Neighbouring inputs of an output that share a grid; 0 is all of them."""
    rank: Count = 8
    """Rank of the addition."""
    alpha: float = 16.0
    """Scale of the addition, divided by the rank."""
    neutral: ClassVar[bool] = False
    puts: ClassVar[type[Reweighted]] = L4qLinear
    example: ClassVar[dict[str, Any]] = {"rank": 2, "alpha": 4.0}

    @property
    def low(self) -> int:
        """The lowest place on the grid."""
        return -(2 ** (self.bits - 1))

    @property
    def high(self) -> int:
        """The highest one."""
        return 2 ** (self.bits - 1) - 1

    def operate(self, model: nn.Module, ctx: Context) -> ParamMap | None:
        for name, layer in linear_layers(model, self.layers).items():
            quantized.check_group(self.group_size, in_out(layer)[0], name)
        return super().operate(model, ctx)

    def made(self, model: nn.Module, name: str, layer: nn.Module, ctx: Context) -> Reweighted:
        return L4qLinear(layer, self, ctx.rng(f"l4q/{name}", at=0))
