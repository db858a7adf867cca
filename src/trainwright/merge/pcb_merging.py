"""PCB-Merging: each parameter of each task has a weight of its own, by its size and by what the others want.

"Parameter Competition Balancing for Model Merging" (arXiv 2410.02396). With N task vectors
tau_i = W_i - W_base, each flattened over the whole model, and all ranges and quantiles those of a task:

    tau_i     magnitudes clipped to the range without the ``clip`` (a share) smallest and largest
    intra_i = exp(N norm(|tau_i|)^2)          norm: to 0 .. 1 by minimum and maximum
    inter_i = tanh(tau_i * sum_j tau_j)       j = i included
    s_i     = intra_i * inter_i
    beta_i  = norm(max(s_i, the (1 - density) quantile of s_i))      dropped entries 0, the best 1
    W       = W_base + scale sum_i beta_i * tau_i / sum_i beta_i

The last line is a weighted mean, not a sum. The authors have published three forms of ``inter``; this is that
of their ``pcb-merging.py``, with its clipping. In the paper's text ``intra`` is a softmax, whose denominator
cancels in the normalization. A task all of whose scores are equal keeps nothing.

Left out: the search of a ``scale`` for each task on validation data, which ``tune`` does for one. Not where
tasks agree on their signs anyway: then it is a trimmed mean. Errors: no base; it stands behind another
method.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from trainwright.core.context import Context
from trainwright.core.method import Arithmetic
from trainwright.merge._ranks import TaskVectors, check_first, of_each
from trainwright.merge._tensors import the_base


class Range(NamedTuple):
    """What is known of one task's whole vector."""

    low: float
    """The smallest and the largest magnitude after clipping."""
    high: float
    cut: float = 0.0
    """The score up to which entries are dropped, and the best."""
    best: float = 0.0


class PcbMerging(Arithmetic):
    """Balances the competition between tasks, parameter by parameter."""

    density: float = 0.1
    """Share of each task's parameters that is kept."""
    clip: float = 1e-4
    """Share of the smallest and of the largest magnitudes that is clipped."""
    scale: float = 1.2
    """Factor of the merged task vector, the paper's lambda."""
    entrywise: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"density": 0.3}

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1 or not 0 <= self.clip < 0.5:
            raise ValueError(
                f"density = {self.density} must be above 0 and at most 1, and clip = {self.clip} from 0 to "
                "below 0.5."
            )

    def prepare(self, ctx: Context) -> None:
        vectors = TaskVectors(ctx, self.name)
        total = vectors.numel
        ends = [int(total * self.clip), max(0, int(total * (1 - self.clip) - 1))]
        found = of_each(vectors.magnitudes, [ends] * len(vectors.models))
        ranges = [Range(*sorted(pair)) for pair in found]

        def scored() -> Iterator[list[Tensor]]:
            return (scores(clipped(held, ranges), ranges) for held in vectors.pieces())
        ends = [min(total - 1, int(total * (1 - self.density))), total - 1]
        cuts = of_each(scored, [ends] * len(ranges))
        ctx.memory[self.name] = [
            r._replace(cut=cut, best=best) for r, (cut, best) in zip(ranges, cuts, strict=True)
        ]

    def combine(self, name: str, tensors: list[Tensor], base: Tensor | None, ctx: Context) -> Tensor:
        base, ranges = the_base(base, self.name), ctx.memory[self.name]
        check_first(len(ranges), len(tensors), self.name)
        vectors = clipped([t - base for t in tensors], ranges)
        weights = [
            (s.clamp_(min=r.cut) - r.cut).div_(r.best - r.cut) if r.best > r.cut else torch.zeros_like(s)
            for s, r in zip(scores(vectors, ranges), ranges, strict=True)
        ]
        total, merged = torch.zeros_like(base), torch.zeros_like(base)
        for weight, vector in zip(weights, vectors, strict=True):
            total += weight
            merged.addcmul_(weight, vector)
        return merged.div_(total.clamp_(min=1e-12)).mul_(self.scale).add_(base)


def clipped(vectors: list[Tensor], ranges: list[Range]) -> list[Tensor]:
    """Task vectors with their magnitudes within their ranges; their signs stay."""
    return [v.abs().clamp_(r.low, r.high).mul_(v.sign()) for v, r in zip(vectors, ranges, strict=True)]


def scores(vectors: list[Tensor], ranges: list[Range]) -> list[Tensor]:
    """How much each entry of each clipped vector counts, before the normalization."""
    total = torch.stack(vectors).sum(0)
    made = []
    for v, r in zip(vectors, ranges, strict=True):
        norm = v.abs().clamp_(min=r.low).sub_(r.low).div_((r.high - r.low) or 1.0)
        made.append(norm.square_().mul_(len(vectors)).exp_().mul_(torch.tanh(v * total)))
    return made
