"""Magnitude pruning: remove the smallest weights of each linear layer.

"Learning both Weights and Connections for Efficient Neural Networks" (arXiv 1506.02626). With W [out, in] of
a layer and a share s to remove, the weights with the smallest |W_ij| become zero and stay zero:

    W'_ij = W_ij  if |W_ij| is among the largest (1 - s) of its group, else 0.

A group is the whole layer, as in the paper, or one output (``group = "row"``, which Wanda found better for
language models); ``pattern = "2:4"`` keeps the two largest of every four neighbours instead. ``structure``
removes whole neurons (``rows``), heads or blocks (``layers``), those of the smallest sum of squares. The mask
goes with the model, one bit a weight, and later stages respect it: the paper's retraining is a training stage
on the result. Embeddings, head, norms and biases are left alone.

Not for high sparsity without retraining, least of all for large language models, whose inputs differ widely
in scale (see ``wanda``). Errors: settings out of range, a ``layers`` that matches no linear layer.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from trainwright.core.context import Context
from trainwright.core.method import ParamMap, Surgery
from trainwright.lm import sparsity
from trainwright.lm.layers import as_linear_weight, linear_layers
from trainwright.lm.structured import Structured


class Magnitude(Structured, Surgery):
    """Zeros for the smallest weights."""

    group: Literal["layer", "row"] = "layer"
    """Within which weights are compared: a whole layer, or one output of it."""

    def operate(self, model: nn.Module, ctx: Context) -> ParamMap | None:
        layers = linear_layers(model, self.layers)
        if self.structure != "weights":
            self.without(model, layers, {n: as_linear_weight(m).detach().abs() for n, m in layers.items()})
            return None
        for name, layer in layers.items():
            scores = as_linear_weight(layer).detach().abs()
            sparsity.prune(
                model, name, layer, sparsity.keep(scores, self.sparsity, self.pattern, self.group == "row")
            )
        return None
