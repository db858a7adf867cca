"""Model Stock: as far from the base towards the average of fine-tuned models as their angles say.

"Model Stock: All we need is just a few fine-tuned models" (arXiv 2403.19522). Fine-tuned models of one task
that differ in their seeds lie on a shell around their common centre. With tau_i = W_i - W_base of one tensor,
n models, and cos theta the mean of the cosines between all pairs of tau_i:

    t = n cos theta / (1 + (n - 1) cos theta),    W = t mean_i(W_i) + (1 - t) W_base

is the point nearest to that centre. Parallel vectors give their average (t = 1), orthogonal ones the base
(t = 0); t is never below 0.

Not for models of different tasks, whose vectors are nearly orthogonal: little is left of them. The paper
merges after each epoch of training too, which is left out. Errors: no base; a single model.
"""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

import torch
from torch import Tensor

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Arithmetic
from trainwright.merge._tensors import the_base


class ModelStock(Arithmetic):
    """Weighs the average of models against their base, by the angles between them."""

    scale: float = 1.0
    """Factor of t, the share of the average; 1 is the paper's."""
    example: ClassVar[dict[str, Any]] = {"scale": 0.9}

    def combine(self, name: str, tensors: list[Tensor], base: Tensor | None, ctx: Context) -> Tensor:
        base = the_base(base, self.name)
        if len(tensors) < 2:
            raise UserError("model_stock looks at angles between models: from.models must name 2 or more.")
        vectors = [t - base for t in tensors]
        t = self.scale * share(vectors)
        mean = vectors[0]
        for vector in vectors[1:]:
            mean.add_(vector)
        return mean.mul_(t / len(vectors)).add_(base)


def share(vectors: list[Tensor]) -> float:
    """The weight of the average, from 0 to 1."""
    n = len(vectors)
    norms = [float(torch.linalg.vector_norm(v)) for v in vectors]
    cosines = [
        float((vectors[i] * vectors[j]).sum()) / (norms[i] * norms[j]) if norms[i] and norms[j] else 0.0
        for i, j in itertools.combinations(range(n), 2)
    ]
    cosine = min(1.0, max(0.0, sum(cosines) / len(cosines)))
    return n * cosine / (1 + (n - 1) * cosine)
