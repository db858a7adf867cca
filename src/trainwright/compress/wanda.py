"""Wanda: remove the weights that matter least for what their layer is given, without any training.

"A Simple and Effective Pruning Approach for Large Language Models" (arXiv 2306.11695). With W [out, in] of a
linear layer and X [positions, in] what calibration data make its input, a weight's score (equation 1) is

    S_ij = |W_ij| * ||X_j||_2,

and in each output (row) i the ``sparsity`` of the weights with the lowest scores becomes zero: comparing
within an output, not within a layer, is what the paper found to matter. ``pattern = "2:4"`` keeps the best
two of every four neighbours of a row. ``structure`` removes whole neurons (``rows``), heads or blocks
(``layers``) instead, those of the lowest sum of S^2, which the paper has not. Blocks are pruned one after the
other, each on what the pruned blocks before it make of the data. The mask goes with the model, one bit a
weight, and later stages respect it.

Padding, where rows have any, counts as input too. Left out is the paper's LoRA fine-tuning afterwards, which
is a stage of its own. Not for sparsity far above one half, where layers need different shares. Errors: no
``from.data``; settings out of range; a ``layers`` that matches no linear layer of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.method import ParamMap, Surgery
from trainwright.lm import sparsity
from trainwright.lm.calibration import block_inputs, through_blocks
from trainwright.lm.layers import as_linear_weight, linear_layers
from trainwright.lm.structured import UNITS, Structured


class Wanda(Structured, Surgery):
    """Zeros for the weights of the lowest |W| times norm of the input."""

    @torch.no_grad()
    def operate(self, model: nn.Module, ctx: Context) -> ParamMap | None:
        layers = linear_layers(model, self.layers)
        squares: dict[nn.Module, Tensor] = {}
        scores: dict[str, Tensor] = {}
        found = 0

        def look(layer: nn.Module, x: Tensor) -> None:
            here = x.float().square().sum(0)
            squares[layer] = squares[layer] + here if layer in squares else here

        for names in through_blocks(model, block_inputs(model, ctx, self.name), look, layers):
            for name in names:
                norm = sharding.summed(squares.pop(layers[name])).sqrt()
                scores[name] = as_linear_weight(layers[name]).detach().float().abs() * norm
                if self.structure == "weights":
                    kept = sparsity.keep(scores.pop(name), self.sparsity, self.pattern, rows=True)
                    sparsity.prune(model, name, layers[name], kept)
            if self.structure in UNITS:
                found += self.without_units(model, layers, scores)
                scores.clear()
        if self.structure == "layers":
            self.without_blocks(model, layers, scores)
        elif self.structure != "weights" and not found:
            raise self.nothing()
        return None
