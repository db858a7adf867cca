"""A domain chat model without domain instructions: what continued pretraining and instruction tuning have
each changed of one base, added up.

"The Construction of Instruction-tuned LLMs for Finance without Instruction Data Using Continual Pretraining
and Model Merging" (arXiv 2409.19854). With B the base, C its continued pretraining on a domain, and I its
instruction tuning (``from = { models = ["C", "I"], base = "B" }``):

    W = B + a (C - B) + b (I - B),    a = b = 1, which is C + I - B

on every tensor. It works because the two changes are nearly independent: the cosine of the angle between
them, over the whole model, is shown on the page, beside that of random vectors of their size.

Averaging C and I is something else, since it halves both changes. Not for an I that was trained from another
version of B. Tokens that the instruction tuning has added have no row in B: models of unlike vocabularies are
refused. Errors: no base, or not two models.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Arithmetic
from trainwright.merge._ranks import TaskVectors
from trainwright.merge._tensors import the_base, weighted_sum


class TaskVectorCptMerge(Arithmetic):
    """Adds the changes of a domain model and of an instruction model to their base."""

    weights: tuple[float, float] = (1.0, 1.0)
    """Factor of the domain's and of the instructions' change; the paper's are 1."""
    entrywise: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"weights": (1.0, 0.5)}

    def prepare(self, ctx: Context) -> None:
        vectors = TaskVectors(ctx, self.name)
        if len(vectors.models) == 2:
            ctx.show(
                "angle between the two changes",
                f"cosine {vectors.cosine():.4f}; of two random vectors of {vectors.numel:,} entries it would "
                f"be 0, give or take {vectors.numel ** -0.5:.1e}",
            )

    def combine(self, name: str, tensors: list[Tensor], base: Tensor | None, ctx: Context) -> Tensor:
        base = the_base(base, self.name)
        if len(tensors) != 2:
            raise UserError(
                f"{self.name} takes a domain model and an instruction model: from.models must name 2, not "
                f"{len(tensors)}."
            )
        return weighted_sum([t - base for t in tensors], list(self.weights)).add_(base)
