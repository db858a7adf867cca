"""DARE: drop most of what each model has learned at random, and scale up the rest.

"Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch" (arXiv
2311.03099). With task vectors tau_i = W_i - W_base and a drop rate p = 1 - ``density``:

    m_ij ~ Bernoulli(p),    tau'_i = (1 - m_i) * tau_i / (1 - p),    W = W_base + scale sum_i w_i tau'_i

with w_i = 1/n by default. Each entry's expectation is what it was. ``elect`` merges what is left as TIES
does: of each entry the mean over the models that have the elected sign there. ``rescale = false`` leaves the
division out, which the paper shows to fail. Entries are drawn by tensor name, model and seed.

Not for changes that are large (beyond about 0.002 a weight, as after continued pretraining): their sum after
dropping is too noisy; see ``darex``. Results vary with the seed: compare over several. Errors: no base;
weights that are not one each.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from trainwright.core.context import Context
from trainwright.core.method import Arithmetic
from trainwright.merge._drop import generators
from trainwright.merge._tensors import moved, one_each, the_base, together


class Dare(Arithmetic):
    """Drops entries of task vectors at random and scales up the rest."""

    density: float = 0.5
    """Share of the entries that is kept: 1 less the paper's drop rate."""
    rescale: bool = True
    """Divide what is kept by ``density``."""
    elect: bool = False
    """Merge with the sign election of TIES, instead of a sum."""
    scale: float = 1.0
    """Factor of the merged task vector."""
    weights: tuple[float, ...] = ()
    """Weight of each model's task vector, in the order of from.models; 1/n each by default."""
    example: ClassVar[dict[str, Any]] = {"density": 0.5, "elect": True}

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density must be above 0 and at most 1, not {self.density}.")

    def combine(self, name: str, tensors: list[Tensor], base: Tensor | None, ctx: Context) -> Tensor:
        base, weights = the_base(base, self.name), one_each(self.weights, len(tensors), self.name)
        draws = generators(name, len(tensors), ctx)

        def dropped(vectors: list[Tensor]) -> Tensor:
            for vector, draw in zip(vectors, draws, strict=True):
                vector.mul_(torch.rand(vector.shape, generator=draw) < self.density)
                if self.rescale:
                    vector.div_(self.density)
            return together(vectors, weights, self.elect).mul_(self.scale)
        return moved(tensors, base, dropped)
