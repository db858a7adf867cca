"""SparseGPT: remove weights and let those that stay make up for them, layer by layer, without any training.

"SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot" (arXiv 2301.00774). With W [out, in]
of a linear layer and X [positions, in] what calibration data make its input, H = X^T X + damping * mean of
its diagonal * I, and H_j the rows and columns of H from j on. The columns are gone through from left to
right. In each ``block`` of them the ``sparsity`` of the weights with the lowest

    S_ij = W_ij^2 / [H_j^-1]_jj

is chosen (``pattern = "2:4"``: of every four neighbours of a row the best two stay). A weight that is removed
becomes zero, and the weights of its row behind it take up the error:

    W_ik <- W_ik - W_ij / [H_j^-1]_jj * [H_j^-1]_jk,    k > j.

Blocks of the model are pruned one after the other, each on what the pruned ones before it make of the data.
The mask goes with the model, one bit a weight, and later stages respect it; what an earlier mask has removed
stays removed. Memory for H is in^2 float32 for each layer of one block.

Padding, where rows have any, counts as input too. Left out is the paper's pruning and quantizing in one pass:
``gptq`` on the result keeps the zeros. Not for few calibration tokens: where a layer saw fewer than it has
inputs, that is said, and magnitudes may be the better guide. Errors: no ``from.data``; settings out of range;
a ``layers`` that matches no linear layer of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.method import ParamMap, Surgery
from trainwright.core.settings import Count, Positive
from trainwright.lm import second_order, sparsity
from trainwright.lm.layers import as_linear_weight, linear_layers
from trainwright.lm.sparsity import Pruner


class Sparsegpt(Pruner, Surgery):
    """Zeros, with the other weights adjusted to what the layer is given."""

    damping: Positive = 0.01
    """What is added to the diagonal of H, as a share of its mean."""
    block: Count = 128
    """Columns whose mask is chosen at once; with a ``pattern`` rounded up to whole groups."""

    @torch.no_grad()
    def operate(self, model: nn.Module, ctx: Context) -> ParamMap | None:
        sizes = []
        for seen in second_order.looked_at(model, ctx, self.name, linear_layers(model, self.layers)):
            weight = as_linear_weight(seen.layer)
            free = second_order.held(model, seen.name, seen.layer)
            pruned, kept = self.solve(weight.detach().float(), seen.gram, free)
            weight.copy_(pruned)
            sparsity.prune(model, seen.name, seen.layer, kept)
            sizes.append((seen.name, len(seen.gram), seen.positions))
        second_order.say_how_few(ctx, self.name, sizes)
        return None

    def solve(self, weight: Tensor, gram: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        """The pruned matrix and its mask (true: kept), both [out, in].

        Args:
            weight: [out, in], float32.
            gram: X^T X, [in, in].
            free: bool [out, in]; weights where it is false are removed whatever their score.
        """
        upper = second_order.factor(gram, self.damping)
        group = sparsity.numbers(self.pattern)[1] if self.pattern else self.block
        block = -(-self.block // group) * group
        kept = torch.zeros_like(free)

        def choose(j: int, w: Tensor) -> Tensor:
            if j % group == 0:
                these = slice(j, min(j + group, w.shape[1]))
                scores = (w[:, these] / upper.diagonal()[these]).square().masked_fill(~free[:, these], -1)
                kept[:, these] = free[:, these] & sparsity.keep(scores, self.sparsity, self.pattern, False)
            return w[:, j].masked_fill(~kept[:, j], 0)

        return second_order.sweep(weight, upper, choose, block), kept
