"""SPDF: pretrain a random subset of the weights with the others held at zero; fine-tune all of them.

"SPDF: Sparse Pre-training and Dense Fine-tuning for Large Language Models" (arXiv 2303.10464). Before the
first step a mask is drawn for each weight matrix of the blocks, with the same share of zeros in each, and
stays fixed. With M the mask (1 where a weight trains), W a weight of any shape and u its update,
    W <- M W at the start,   u <- M u,   and after each step W, and what any method remembers of W, is 0
    wherever M is.
Moments, decay and averages therefore move no hidden weight, in whatever order the recipe names them.

This stage is the sparse pretraining. Dense fine-tuning is the next stage: it starts from the checkpoint and
does not name this method, so that the freed weights start at exactly 0 and all weights train with a new
optimizer:
    methods = [{ use = "spdf", sparsity = 0.75 }, …]     in the first stage, nothing in the second.
Naming it again (the same seed gives the same mask) is sparse fine-tuning, the paper's comparison. The mask
depends on the seed, the sparsity and the name of the matrix: one mask is one sample, so vary the seed.

It lowers the FLOPs that hardware for sparse weights would need, per token and forward pass,
    (1 - sparsity) 24 d^2 layers + 4 seq d layers + 2 d V     (width d, vocabulary of V tokens);
for GPT-3 XL at 75 % by a factor of 2.5, not 4. On a GPU or CPU masked matrices are multiplied as dense
ones: time, memory and the FLOPs that a run logs stay the same. Name it before ``clip_gradients`` and the
optimizer, so that the clipped norm is that of what trains. Embeddings, norms, biases and the head stay dense.

Do not use it on a trained model: it removes weights at random.

Errors: ``params`` matches nothing that can be pruned; a sparsity outside 0 … 1.
State: ``param``: hidden (bool, like the weight).
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from trainwright.core.context import Context
from trainwright.core.method import State, Tensors, Update
from trainwright.lm.masks import drawn, hide, maskable, masked


class Spdf(Update):
    """Trains a random subset of the weights with the others at zero; the next stage fine-tunes all."""

    sparsity: float = 0.75
    """Share of each matrix' weights held at zero."""
    reads_grads: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {}
    off: ClassVar[dict[str, Any] | None] = {"sparsity": 0.0}

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must be at least 0 and below 1, not {self.sparsity}")

    def claims(self, model: nn.Module) -> set[str]:
        return set(maskable(model, self.params))

    def init(self, model: nn.Module, ctx: Context) -> State:
        return {
            "param": {
                n: {"hidden": drawn(w, round(self.sparsity * w.numel()), ctx.rng(f"spdf/{n}", at=0))}
                for n, w in maskable(model, self.params).items()
            }
        }

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        return masked(updates, state, ctx)

    def settle(self, params: Tensors, state: State, ctx: Context) -> None:
        hide(params, state, ctx)
