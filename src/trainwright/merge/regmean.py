"""RegMean: merge each linear layer so that its outputs stay, in least squares, what each model's were.

"Dataless Knowledge Fusion by Merging Weights of Language Models" (arXiv 2212.09849). With X_i [positions, in]
what calibration data make the input of a linear layer of model i, and W_i [out, in] its weight, the minimum
of sum_i ||X_i W^T - X_i W_i^T||^2 is

    W^T = (sum_i G_i)^-1 sum_i G_i W_i^T,    G_i = X_i^T X_i [in, in]

with the entries of G_i beside its diagonal multiplied by ``shrink``. All other tensors (embeddings, norms,
biases, head) are averaged. Inputs that no model's data ever have make no difference: there, the weights are
averaged too. ``sample`` says how many rows of ``from.data`` each model sees, and of which domain.

It holds a matrix [in, in] for each linear layer and model. Not for models that were trained apart from the
start. Errors: no ``from.data``; domains that are not one each; a model without linear layers in its blocks.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.method import Arithmetic, Tensors
from trainwright.core.stage import CORPUS, Role
from trainwright.lm.layers import as_linear_weight, linear_layers
from trainwright.merge._data import Sample, loaded

RIDGE = 1e-6
"""Of the mean of a Gram matrix' diagonal: what is added to it, so that it can be inverted."""


class Seen(NamedTuple):
    """What is known of a linear layer."""

    gram: Tensor
    """The shrunk Gram matrix of its inputs [in, in]."""
    turned: bool
    """Whether its weight is kept as [in, out]."""


class Regmean(Arithmetic):
    """Merges linear layers by regression on what they are given, and averages the rest."""

    sample: Sample = Sample()
    """What the models look at."""
    shrink: float = 0.9
    """Factor of the entries beside the diagonals of the Gram matrices."""
    roles: ClassVar[dict[str, Role]] = {"data": CORPUS._replace(needed=True)}
    example: ClassVar[dict[str, Any]] = {"sample": {"rows": 4, "length": 32}}

    def __post_init__(self) -> None:
        if not 0 <= self.shrink <= 1:
            raise ValueError(f"shrink must be from 0 to 1, not {self.shrink}.")

    def prepare(self, ctx: Context) -> None:
        folders = ctx.inputs["models"]
        self.sample.check(len(folders), self.name)
        models = loaded(folders, ctx, self.name)
        ctx.memory[self.name] = [self.seen(m, i, ctx) for i, m in enumerate(models)]

    def combine(self, name: str, tensors: list[Tensor], base: Tensor | None, ctx: Context) -> Tensor:
        found = ctx.memory[self.name]
        if len(found) != len(tensors) or name not in found[0]:
            return torch.stack(tensors).mean(0)
        grams, turned = [one[name].gram.double() for one in found], found[0][name].turned
        mean = sum(float(g.diagonal().mean()) for g in grams) / len(grams)
        ridge = RIDGE * (mean or 1.0) * torch.eye(len(grams[0]), dtype=torch.float64)
        total, right = torch.zeros_like(ridge), torch.zeros((), dtype=torch.float64)
        for gram, tensor in zip(grams, tensors, strict=True):
            part = gram + ridge
            total, right = total + part, right + part @ (tensor if turned else tensor.T).double()
        solved = torch.linalg.solve(total, right)
        return (solved if turned else solved.T).float().contiguous()

    @torch.no_grad()
    def seen(self, model: nn.Module, number: int, ctx: Context) -> dict[str, Seen]:
        """What a model's linear layers are given, by the weight's name."""
        layers = {f"{n}.weight": m for n, m in linear_layers(model, "all-linear").items()}
        found: Tensors = {}
        hooks = [m.register_forward_pre_hook(_adding(found, n)) for n, m in layers.items()]
        for batch in self.sample.of(model, number, ctx):
            places = {"position_ids": batch["position_ids"]} if families.takes_positions(model) else {}
            model(input_ids=batch["input_ids"], use_cache=False, **places)
        for hook in hooks:
            hook.remove()
        made = {n: self.shrink * g + (1 - self.shrink) * g.diagonal().diag() for n, g in found.items()}
        return {n: Seen(g, _turned(layers[n])) for n, g in made.items()}


def _turned(layer: nn.Module) -> bool:
    return as_linear_weight(layer).stride() != layer.weight.stride()  # type: ignore[operator, union-attr]


def _adding(found: Tensors, name: str) -> Any:
    def look(layer: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].flatten(0, -2).float()
        gram = (x.T @ x).cpu()
        found[name] = found[name] + gram if name in found else gram
    return look
