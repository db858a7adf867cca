"""Task arithmetic: add to a base model what each fine-tuned model has learned, or take it away.

"Editing Models with Task Arithmetic" (arXiv 2212.04089). A model's task vector is its difference from the base:

    W = W_base + sum_i w_i (W_i - W_base)    (w_i = 1/n unless given)

w_i = 1 adds the whole task, w_i < 0 forgets it. The paper adds several tasks with one scale for all (0.3 to 0.5), chosen on
held-out data. Computed in float32, returned in the dtype of the base; tensors that are not floating point are the base's. Not
for models that were not trained from the base: ``from = { models = ["a", "b"], base = "c" }``.
"""
from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from trainwright.core.bench import Bench
from trainwright.core.errors import UserError
from trainwright.core.method import Arithmetic
from trainwright.merge._tensors import exact, one_each, weighted_sum


class TaskArithmetic(Arithmetic):
    """Raises UserError without a base, and for weights that are not one for each model."""

    weights: tuple[float, ...] = ()
    """Scale of each model's task vector, in the order of from.models; 1/n each unless given."""
    bench: ClassVar[Bench | None] = Bench(
        suite="merge", claim="adding task vectors gives one model all of their skills (two tasks keep 98.9 % of the accuracy)",
        search={"weights": [[0.5, 0.5], [0.35, 0.35], [0.75, 0.75]]})
    example: ClassVar[dict[str, Any]] = {"weights": (0.4, 0.4)}

    def combine(self, tensors: list[Tensor], base: Tensor | None) -> Tensor:
        if base is None:
            raise UserError("task_arithmetic needs the model that the others were trained from: write "
                            "from = { models = […], base = \"NAME\" }.")
        weights = one_each(self.weights, len(tensors), self.name)
        if not base.is_floating_point():
            return base.clone()
        start, *others = exact([base, *tensors])
        return start.add(weighted_sum([t - start for t in others], weights)).to(base.dtype)
