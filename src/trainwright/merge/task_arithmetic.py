"""Task arithmetic: add what fine-tuned models have learned to their base model, or subtract it.

"Editing Models with Task Arithmetic" (arXiv 2212.04089). A model's task vector is its difference from the
base:

    W = W_base + sum_i w_i (W_i - W_base)    (w_i = 1/n by default)

w_i = 1 adds the whole task, w_i < 0 makes the model forget it. The paper adds several tasks with one scale
for all (0.3 to 0.5), chosen on held-out data. Computed in float32 and returned in the dtype of the base;
tensors that are not floating point are the base's.
Do not use it for models that were not trained from the base:
    from = { models = ["a", "b"], base = "c" }
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from trainwright.core.context import Context
from trainwright.core.method import Arithmetic
from trainwright.merge._tensors import one_each, the_base, weighted_sum


class TaskArithmetic(Arithmetic):
    """Adds task vectors to the base. Raises UserError without a base or one weight per model."""

    weights: tuple[float, ...] = ()
    """Scale of each model's task vector, in the order of from.models; 1/n each by default."""
    entrywise: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"weights": (0.4, 0.4)}

    def combine(self, name: str, tensors: list[Tensor], base: Tensor | None, ctx: Context) -> Tensor:
        base, weights = the_base(base, self.name), one_each(self.weights, len(tensors), self.name)
        return base.add(weighted_sum([t - base for t in tensors], weights))
