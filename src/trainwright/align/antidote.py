"""Antidote: after a fine-tuning that may have been poisoned, zero the few weights that matter most for harm.

"Antidote: Post-fine-tuning Safety Alignment for Large Language Models against Harmful Fine-tuning" (arXiv
2408.09600). The fine-tuned model reads harmful texts (``from.data``: harmful prompts with harmful answers).
With W [out, in] of a linear layer and X [positions, in] what those make its input, a weight's score is
Wanda's,

    S_ij = |W_ij| ||X_j||_2,

and in each output (row) i all but the int(in (1 - share)) lowest scores become zero: the highest, where Wanda
removes the lowest. All scores are those of the model before anything is zeroed. It is done once, nothing is
trained, and nothing need be known of the fine-tuning. ``by = "random"`` zeroes as many weights of each output
at random, which is what its effect is to be compared with.

The authors prune the matrices of a LoRA that is not yet merged, and after full fine-tuning the projections of
queries, keys and values, which is the default here: to zero a tenth of all merged weights would destroy the
model. Padding, where rows have any, counts as input too.

Not on benign or mixed texts, which would cost the abilities that they show. Look at a task beside the harm.

Errors: no ``from.data``; a ``layers`` that matches no linear layer of a block.
"""
from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.method import ParamMap, Surgery
from trainwright.core.settings import Between
from trainwright.lm import sparsity
from trainwright.lm.calibration import block_inputs, through_blocks
from trainwright.lm.layers import as_linear_weight, linear_layers


class Antidote(Surgery):
    """Zeros for the weights of the highest |W| times norm of the input on harmful texts."""

    share: Annotated[float, Between(0, 1)] = 0.1
    """Share of the weights of each output to zero (the paper's alpha)."""
    layers: str = "*.self_attn.[qkv]_proj"
    """Which layers: all-linear, attention, mlp, or a glob of module names inside the blocks."""
    by: Literal["harm", "random"] = "harm"
    """Which weights: those of the highest scores, or as many at random to compare with."""
    neutral: ClassVar[bool] = False
    off: ClassVar[dict[str, Any] | None] = {"share": 0.0}
    example: ClassVar[dict[str, Any]] = {"share": 0.25, "layers": "attention"}

    def claims(self, model: nn.Module) -> set[str]:
        return sparsity.claimed(model, self.layers)

    @torch.no_grad()
    def operate(self, model: nn.Module, ctx: Context) -> ParamMap | None:
        layers = linear_layers(model, self.layers)
        scores = self._harm(model, layers, ctx) if self.by == "harm" else self._random(layers, ctx)
        for name, layer in layers.items():
            weight = as_linear_weight(layer)
            weight.masked_fill_(highest(scores[name].to(weight.device), self.share), 0)
        return None

    def _harm(self, model: nn.Module, layers: dict[str, nn.Module], ctx: Context) -> dict[str, Tensor]:
        squares: dict[nn.Module, Tensor] = {}

        def look(layer: nn.Module, x: Tensor) -> None:
            squares[layer] = squares.get(layer, 0) + x.float().square().sum(0)
        for _ in through_blocks(model, block_inputs(model, ctx, self.name), look, layers):
            pass
        return {name: as_linear_weight(layer).detach().float().abs() * sharding.summed(squares[layer]).sqrt()
                for name, layer in layers.items()}

    def _random(self, layers: dict[str, nn.Module], ctx: Context) -> dict[str, Tensor]:
        return {name: torch.rand(as_linear_weight(layer).shape, generator=ctx.rng(f"antidote/{name}", at=0))
                for name, layer in layers.items()}


def highest(scores: Tensor, share: float) -> Tensor:
    """Of each row all but the int(columns (1 - share)) lowest scores, bool."""
    kept = int(scores.shape[1] * (1 - share))
    found = torch.ones_like(scores, dtype=torch.bool)
    return found.scatter_(1, scores.argsort(dim=1, stable=True)[:, :kept], False)
