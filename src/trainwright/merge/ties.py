"""TIES: keep the largest changes of each model, agree on the sign of each entry, average those who agree.

"TIES-Merging: Resolving Interference When Merging Models" (arXiv 2306.01708). With task vectors
tau_i = W_i - W_base, flattened over the whole model:

    trim    tau'_i = tau_i where |tau_i| is among the ``density`` largest of its model, else 0
    elect   s = sign(sum_i w_i tau'_i)
    merge   tau_m = sum over {i: sign(tau'_i) = s} of w_i tau'_i / sum of these w_i,
            W = W_base + scale tau_m

with w_i = 1/n, whose size does not matter. ``add_up`` leaves the division out, as the authors' "dis-sum".
``over = "tensor"`` trims each tensor for itself, as mergekit does. Entries as large as the last that is kept
are kept too, as in the authors' code. Where the sum of an election is exactly zero, the sign is plus (as in
mergekit; the authors take that of the whole vector's majority).

Not for models that were trained apart from the start, and not where the tasks' own changes are dense: then
trimming costs what it protects elsewhere. Errors: no base; weights that are not one each; it stands behind
another method in a merge.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from trainwright.core.context import Context
from trainwright.core.method import Arithmetic
from trainwright.merge._ranks import TaskVectors, check_first, cut_off, slices
from trainwright.merge._tensors import one_each, the_base, together


class Ties(Arithmetic):
    """Trims task vectors, elects a sign for each entry, and averages what agrees."""

    density: float = 0.2
    """Share of each task vector's entries that is kept, the largest ones."""
    scale: float = 1.0
    """Factor of the merged task vector, the paper's lambda."""
    weights: tuple[float, ...] = ()
    """Weight of each model in the election and in the mean, in the order of from.models; equal by default."""
    add_up: bool = False
    """Take the sum of those who agree, not their mean, each times its weight: 1 each if none is given."""
    over: Literal["model", "tensor"] = "model"
    """Within what the largest entries are chosen."""
    entrywise: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"density": 0.5, "over": "tensor"}

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density must be above 0 and at most 1, not {self.density}.")

    def prepare(self, ctx: Context) -> None:
        ctx.memory[self.name] = TaskVectors(ctx, self.name).cuts(self.density, self.over == "tensor")

    def combine(self, name: str, tensors: list[Tensor], base: Tensor | None, ctx: Context) -> Tensor:
        base, weights = the_base(base, self.name), one_each(self.weights, len(tensors), self.name)
        if self.add_up and not self.weights:
            weights = [1.0] * len(tensors)
        vectors = [t - base for t in tensors]
        known = ctx.memory.get(self.name, {})
        cuts = known.get(name) or known.get("*") or [
            cut_off(slices(v), v.numel(), self.density) for v in vectors
        ]
        check_first(len(cuts), len(vectors), self.name)
        for vector, cut in zip(vectors, cuts, strict=True):
            vector.masked_fill_(vector.abs() < cut, 0)
        return together(vectors, weights, elect=True, mean=not self.add_up).mul_(self.scale).add_(base)
