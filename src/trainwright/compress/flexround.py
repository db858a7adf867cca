"""FlexRound: learn how each weight is rounded, by dividing it, so that each block computes what it did.

"FlexRound: Learnable Rounding based on Element-wise Division for Post-Training Quantization" (arXiv
2306.00317). With W [out, in] of a linear layer, s the step of its grid (one for each ``group_size``
neighbouring inputs of an output), S one number for each weight and r one for each output, all above zero and
all trained,

    W' = s (clamp(round(W / (s S r)) + z, -2^(bits - 1), 2^(bits - 1) - 1) - z).

What divides decides about rounding alone: W' lies on the grid of s, so that it takes ``bits`` bits. s starts
at the grid that just holds all weights, S and r at 1, which is rounding to nearest; z is fixed. Rounding lets
gradients through, so that dW'/dS = -W / (S^2 r) inside the range: large weights move further, over several
grid points. Learned are the logarithms, with one Adam whose rate falls to zero along a cosine, in each block
of the model by itself and in order: the squared distance of the block's output, on what the rounded blocks
before it make of the data, from that of the whole block in the whole model.

Zeros of a mask stay. ``stored = "packed"`` of the stage writes the bits. Left out is the authors' search for
the first s and z among shrunken ranges. Memory: the hidden states of the calibration data twice, and three
further numbers for each weight of one block. Not for few calibration tokens: where there are fewer than a
layer has inputs, that is said.
Errors: no ``from.data``; a ``layers`` that matches no linear layer of a block; a group that does not fill a
layer.
"""
from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainwright.core import masks, sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import ParamMap, Surgery
from trainwright.core.settings import Count, Positive
from trainwright.lm import quantized, second_order
from trainwright.lm.calibration import Call, block_inputs
from trainwright.lm.layers import as_linear_weight, block_names, in_out, put
from trainwright.lm.quantized import Grid, Quantizer, passed_through
from trainwright.lm.reweighted import Reweighted


class FlexLinear(Reweighted):
    """A linear layer that computes with its rounded weights."""

    def __init__(self, layer: nn.Module, settings: Flexround) -> None:
        super().__init__(layer, settings)
        weight = as_linear_weight(self).detach().float()
        self.start = settings.grid_of(weight)
        self.log_step = nn.Parameter(self.start.scale.log())
        self.log_each = nn.Parameter(torch.zeros_like(weight))
        self.log_row = nn.Parameter(torch.zeros_like(weight[:, :1]))

    def grid(self) -> Grid:
        """The grid as it stands."""
        return Grid(self.log_step.detach().exp(), self.start.zero, self.settings.bits)

    def matrix(self) -> Tensor:
        groups = (1, (self.log_step.shape[1], -1))
        step, zero = self.log_step[..., None], self.start.zero[..., None]
        divisor = (step + (self.log_each + self.log_row).unflatten(*groups)).exp()
        top = 2 ** (self.settings.bits - 1)
        places = passed_through(as_linear_weight(self).float().unflatten(*groups) / divisor) + zero
        return ((places.clamp(-top, top - 1) - zero) * step.exp()).flatten(1)


class Flexround(Quantizer, Surgery):
    """Learned rounding, block by block."""

    steps: Count = 200
    """Steps of Adam for each block."""
    lr: Positive = 3e-3
    """Its learning rate at the start."""
    example: ClassVar[dict[str, Any]] = {"steps": 3}

    @torch.no_grad()
    def operate(self, model: nn.Module, ctx: Context) -> ParamMap | None:
        layers = self.found(model)
        rounded = block_inputs(model, ctx, self.name)
        whole, told = list(rounded), []
        for block in block_names(model):
            module, names = model.get_submodule(block), [n for n in layers if n.startswith(f"{block}.")]
            targets = [_hidden(module, call) for call in whole]
            if names:
                before = _error(module, rounded, targets)
                for name in names:
                    put(model, name, FlexLinear(layers[name], self))
                nearest = _error(module, rounded, targets)
                self.learn(module, rounded, targets, ctx, block)
                told.append((block, before, nearest, _error(module, rounded, targets)))
                for name in names:
                    self.close(model, name)
            rounded = [_next(call, _hidden(module, call)) for call in rounded]
            whole = [_next(call, target) for call, target in zip(whole, targets, strict=True)]
        if not told:
            raise UserError(f"{self.name}: layers = {self.layers!r} matches no linear layer of a block.")
        tokens = sum(call[0][0].shape[:-1].numel() for call in rounded)
        second_order.say_how_few(ctx, self.name, [(n, in_out(m)[0], tokens) for n, m in layers.items()])
        ctx.show(f"{self.name}/blocks", "\n".join(
            f"{block}: squared error {before:.3g} before it is rounded, {nearest:.3g} by rounding to nearest "
            f"and {now:.3g} as learned" for block, before, nearest, now in told))
        return None

    @torch.enable_grad()
    def learn(self, block: nn.Module, calls: list[Call], targets: list[Tensor], ctx: Context,
              name: str) -> None:
        """Adam on the divisors and steps of one block."""
        trained = [p for m in block.modules() if isinstance(m, FlexLinear)
                   for p in (m.log_step, m.log_each, m.log_row)]
        adam = torch.optim.Adam(trained, lr=self.lr)
        draws = torch.randint(len(calls), (self.steps,), generator=ctx.rng(f"flexround/{name}", at=0))
        for step, at in enumerate(draws.tolist()):
            adam.param_groups[0]["lr"] = self.lr * (1 + math.cos(math.pi * step / self.steps)) / 2
            loss = (_hidden(block, calls[at]) - targets[at]).square().mean()
            for p, grad in zip(trained, torch.autograd.grad(loss, trained), strict=True):
                p.grad = sharding.summed(grad) / sharding.world()     # each rank has a part of the rows
            adam.step()

    def close(self, model: nn.Module, name: str) -> None:
        """Give a layer the weights that it has come to, and the model its grid."""
        layer = model.get_submodule(name)
        assert isinstance(layer, FlexLinear)
        grid, kept = layer.grid(), masks.of(model).get(f"{name}.weight")
        trained = layer.weight.requires_grad
        plain = layer.folded()
        if kept is not None:
            plain.weight.masked_fill_(~kept, 0)                                          # type: ignore[operator]
        plain.requires_grad_(trained)
        put(model, name, plain)
        quantized.remember(model, name, grid, self.symmetric)


def _hidden(block: nn.Module, call: Call) -> Tensor:
    args, given = call
    out = block(*args, **given)
    return out[0] if isinstance(out, tuple) else out                                     # type: ignore[no-any-return]


def _next(call: Call, hidden: Tensor) -> Call:
    """The same call with other hidden states."""
    return (hidden, *call[0][1:]), call[1]


def _error(block: nn.Module, calls: list[Call], targets: list[Tensor]) -> float:
    pairs = zip(calls, targets, strict=True)
    apart = [(_hidden(block, call) - target).square().mean() for call, target in pairs]
    return float(torch.stack(apart).mean())
