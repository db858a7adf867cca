"""GPTQ: round weights column by column and let the columns behind make up for the error on calibration data.

"GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (arXiv 2210.17323). With W
[out, in] of a linear layer, X [positions, in] what calibration data make its input, H = X^T X + damping *
mean of its diagonal * I, and H_j its rows and columns from j on, each column j in order becomes

    Q_j = round(W_j) on the grid of its group,
    W_ik <- W_ik - (W_ij - Q_ij) / [H_j^-1]_jj * [H_j^-1]_jk,    k > j.

Grids are those of ``trainwright.lm.quantized``: one for all inputs of an output, taken from the weights as
they were, or one for each ``group_size`` inputs, taken when the sweep comes to them. ``act_order`` goes
through the inputs from the largest diagonal entry of H to the smallest; the grids are then all taken
beforehand, so that groups stay neighbours. Blocks of the model go one after the other, each on what the
quantized ones before it make of the data. Zeros of a mask stay. Memory for H is in^2 float32 for each layer
of one block.

The weights stay floating-point numbers that take no other value than those of the grid; ``stored = "packed"``
of the stage writes their bits. Nothing in a later stage keeps them on the grid. Padding, where rows have any,
counts as input too. Not for few calibration tokens: where a layer saw fewer than it has inputs, that is said,
and rounding to nearest may be better.
Errors: no ``from.data``; settings out of range; a ``layers`` that matches no linear layer of a block; a group
that does not fill a layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.method import ParamMap, Surgery
from trainwright.core.settings import Positive
from trainwright.lm import quantized, second_order
from trainwright.lm.layers import as_linear_weight
from trainwright.lm.quantized import Grid, Quantizer


class GPTQ(Quantizer, Surgery):
    """Weights rounded to a grid, each column correcting the errors of those before it."""

    act_order: bool = False
    """Whether the inputs with the largest values come first."""
    damping: Positive = 0.01
    """What is added to the diagonal of H, as a share of its mean."""

    @torch.no_grad()
    def operate(self, model: nn.Module, ctx: Context) -> ParamMap | None:
        layers, sizes = self.found(model), []
        for seen in second_order.looked_at(model, ctx, self.name, layers):
            weight = as_linear_weight(seen.layer)
            free = second_order.held(model, seen.name, seen.layer)
            new, grid = self.solve(weight.detach().float(), seen.gram, free)
            weight.copy_(new)
            quantized.remember(model, seen.name, grid, self.symmetric)
            sizes.append((seen.name, len(seen.gram), seen.positions))
        second_order.say_how_few(ctx, self.name, sizes)
        return None

    def solve(self, weight: Tensor, gram: Tensor, free: Tensor) -> tuple[Tensor, Grid]:
        """The quantized matrix, float32 [out, in], and its grids.

        Args:
            weight: [out, in], float32.
            gram: X^T X, [in, in].
            free: bool [out, in]; weights where it is false become zero.
        """
        group = self.group_size or weight.shape[1]
        order = torch.arange(weight.shape[1], device=weight.device)
        if self.act_order:
            order = gram.diagonal().argsort(descending=True, stable=True)
        upper = second_order.factor(gram[order][:, order], self.damping)
        free, before = free[:, order], self.grid_of(weight)
        grids: list[Grid] = [before.column(i) for i in range(before.scale.shape[1])]
        places = order.tolist()

        def choose(j: int, w: Tensor) -> Tensor:
            at = places[j] // group
            if self.group_size and not self.act_order and j % group == 0:
                grids[at] = self.grid_of(w[:, j:j + group])
            return grids[at].nearest(w[:, j:j + 1])[:, 0].masked_fill(~free[:, j], 0)

        block = group * max(1, second_order.BLOCK // group) if self.group_size else second_order.BLOCK
        found = second_order.sweep(weight[:, order], upper, choose, block)
        scales, zeros = (torch.cat([g[i] for g in grids], 1) for i in (0, 1))
        return found[:, order.argsort()], Grid(scales, zeros, self.bits)
