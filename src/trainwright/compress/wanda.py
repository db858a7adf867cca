"""Wanda: remove the weights that matter least for what their layer is given, without any training.

"A Simple and Effective Pruning Approach for Large Language Models" (arXiv 2306.11695). With W [out, in] of a
linear layer and X [positions, in] what calibration data make its input, a weight's score (equation 1) is

    S_ij = |W_ij| * ||X_j||_2,

and in each output (row) i the ``sparsity`` of the weights with the lowest scores becomes zero: comparing
within an output, not within a layer, is what the paper found to matter. ``pattern = "2:4"`` keeps the best
two of every four neighbours of a row. Blocks are pruned one after the other, each on what the pruned blocks
before it make of the data. The mask goes with the model, one bit a weight, and later stages respect it.

Padding, where rows have any, counts as input too. Left out is the paper's LoRA fine-tuning afterwards, which
is a stage of its own. Not for sparsity far above one half, where layers need different shares. Errors: no
``from.data``; settings out of range; a ``layers`` that matches no linear layer of a block.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.method import ParamMap, Surgery
from trainwright.lm import sparsity
from trainwright.lm.calibration import block_inputs, through_blocks
from trainwright.lm.layers import as_linear_weight, linear_layers


class Wanda(Surgery):
    """Zeros for the weights of the lowest |W| times norm of the input."""

    sparsity: float = 0.5
    """Share of the weights of each output to remove."""
    pattern: str = ""
    """``N:M`` keeps N of every M neighbouring inputs, such as ``2:4``; it takes the place of ``sparsity``."""
    layers: str = "all-linear"
    """Which layers: ``all-linear``, ``attention``, ``mlp``, or a glob of module names inside the blocks."""
    neutral: ClassVar[bool] = False
    off: ClassVar[dict[str, Any] | None] = {"sparsity": 0.0}
    example: ClassVar[dict[str, Any]] = {"sparsity": 0.5}

    def __post_init__(self) -> None:
        sparsity.check(self.sparsity, self.pattern)

    def claims(self, model: nn.Module) -> set[str]:
        return sparsity.claimed(model, self.layers)

    @torch.no_grad()
    def operate(self, model: nn.Module, ctx: Context) -> ParamMap | None:
        layers = linear_layers(model, self.layers)
        squares: dict[nn.Module, Tensor] = {}

        def look(layer: nn.Module, x: Tensor) -> None:
            here = x.float().square().sum(0)
            squares[layer] = squares[layer] + here if layer in squares else here

        for names in through_blocks(model, block_inputs(model, ctx, self.name), look, layers):
            for name in names:
                norm = sharding.summed(squares.pop(layers[name])).sqrt()
                scores = as_linear_weight(layers[name]).detach().float().abs() * norm
                kept = sparsity.keep(scores, self.sparsity, self.pattern, rows=True)
                sparsity.prune(model, name, layers[name], kept)
        return None
