"""DAREx-q: drop most of what a model has learned at random, and scale up the rest by less than DARE does.

"DARE the Extreme: Revisiting Delta-Parameter Pruning For Fine-Tuned Models" (arXiv 2410.09344). With
Delta_i = W_i - W_base and a drop rate p = 1 - ``density``:

    m_i ~ Bernoulli(p),    Delta'_i = (1 - m_i) * Delta_i / q  with q >= 1 - p,
    W = W_base + sum_i w_i Delta'_i

At high p, DARE's 1/(1 - p) makes the outputs' variance explode; a q above 1 - p trades a bias for it. With
q = 1 - p it is DARE, to the bit. As the paper does in decoders, only the matrices of the blocks' attention
and feed-forward parts (``only``) are dropped from; embeddings, norms and the head keep the whole of what was
learned.

q is to be tuned on data that is not the test's: ``tune = { q = […] }`` in a comparison. Left out: the
analytic q of each layer, and DAREx-L2, which changes the fine-tuning. Where changes are large, the paper
recommends keeping the largest (``ties`` with one model). Errors: no base; q below ``density``, which never
helps; weights that are not one each.
"""

from __future__ import annotations

import fnmatch
from typing import Any, ClassVar

import torch
from torch import Tensor

from trainwright.core.context import Context
from trainwright.core.method import Arithmetic
from trainwright.merge._drop import generators
from trainwright.merge._tensors import moved, one_each, the_base, weighted_sum


class Darex(Arithmetic):
    """Drops entries of task vectors at random and divides the rest by q."""

    density: float = 0.01
    """Share of the entries that is kept: 1 less the paper's drop rate."""
    q: float = 0.0
    """What the kept entries are divided by, at least ``density``; 0 stands for ``density``, which is DARE."""
    only: tuple[str, ...] = ("*.self_attn.*", "*.attn.*", "*.attention.*", "*.mlp.*")
    """Globs of the tensors that entries are dropped from."""
    weights: tuple[float, ...] = ()
    """Weight of each model's task vector, in the order of from.models; 1/n each by default."""
    example: ClassVar[dict[str, Any]] = {"density": 0.2, "q": 0.4, "only": ("*",)}

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density must be above 0 and at most 1, not {self.density}.")
        if self.q and not self.density <= self.q <= 1:
            raise ValueError(f"q must be from density = {self.density} to 1, or 0, not {self.q}.")

    def combine(self, name: str, tensors: list[Tensor], base: Tensor | None, ctx: Context) -> Tensor:
        base, weights = the_base(base, self.name), one_each(self.weights, len(tensors), self.name)
        chosen = any(fnmatch.fnmatchcase(name, glob) for glob in self.only)
        draws = generators(name, len(tensors), ctx)

        def dropped(vectors: list[Tensor]) -> Tensor:
            for vector, draw in zip(vectors, draws, strict=True):
                if chosen:
                    vector.mul_(torch.rand(vector.shape, generator=draw) < self.density)
                    vector.div_(self.q or self.density)
            return weighted_sum(vectors, weights)
        return moved(tensors, base, dropped)
