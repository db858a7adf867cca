"""Rounding to nearest: each weight of a linear layer becomes the nearest of 2^bits numbers, without data.

The baseline of all papers on quantization after training; the grids are those of
``trainwright.lm.quantized``, equal to those of the library compressed-tensors. With W [out, in] and, for each
``group_size`` neighbouring inputs of an output, a scale s and a whole number z,

    W' = s (clamp(round(W / s + z), -2^(bits - 1), 2^(bits - 1) - 1) - z).

The weights stay floating-point numbers that take no other value than those of the grid; ``stored = "packed"``
of the stage writes their bits. Nothing in a later stage keeps them on the grid. Embeddings, head, norms,
biases and what goes through the layers stay as they are. Not below 4 bits, where a row of weights is rather
worth ``gptq`` or a small group.
Errors: settings out of range; a ``layers`` that matches no linear layer; a group that does not fill a layer.
"""

from __future__ import annotations

import torch
from torch import nn

from trainwright.core.context import Context
from trainwright.core.method import ParamMap, Surgery
from trainwright.lm import quantized
from trainwright.lm.layers import as_linear_weight
from trainwright.lm.quantized import Quantizer


class RoundNearest(Quantizer, Surgery):
    """Weights rounded to a grid of few numbers."""

    @torch.no_grad()
    def operate(self, model: nn.Module, ctx: Context) -> ParamMap | None:
        for name, layer in self.found(model).items():
            weight = as_linear_weight(layer)
            grid = self.grid_of(weight)
            weight.copy_(grid.nearest(weight))
            quantized.remember(model, name, grid, self.symmetric)
        return None
