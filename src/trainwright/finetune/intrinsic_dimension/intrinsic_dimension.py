"""Intrinsic dimension: train a model in a random subspace, and find the smallest dimension that suffices.

"Measuring the Intrinsic Dimension of Objective Landscapes" (arXiv 1804.08838). With theta all D parameters of
the model (biases, norms, embeddings and head included) and theta_0 their start, here the model that is
loaded,

    theta = theta_0 + P theta_d,   theta_d [d] = 0 at the start,   P [D, d] random, its columns of length 1,

and only theta_d is trained, so that a seed and d numbers describe the result. The length of a column is taken
over all parameters together. ``projection`` chooses P: ``dense`` has Gaussian entries (d D numbers of
memory), ``sparse`` has signs with density 1 / sqrt(size of the parameter), and ``fastfood`` is the product H
G Pi H B of Walsh-Hadamard transforms (time D log D, 9 to 18 bytes a parameter). The released code applies one
Fastfood transform to all parameters; here each parameter has its own, weighted so that columns keep length 1
(in expectation, as there), and no vector of the whole model's size is needed.

d_int90 is the smallest d that reaches 90 % of what direct training of the same network reaches. Arms of a
comparison that differ in ``dimension``, each with its own learning rate, against direct training measure it::

    trainwright compare recipes/intrinsic_dimension.toml
    trainwright smallest store/comparisons/intrinsic_dimension/result.json intrinsic_dimension.dimension

and ``d90`` searches in Python. theta_d is one 1-D parameter: ``adamw`` does not decay it, and a decay that is
set pulls to theta_0, not to 0. Learning rates are on another scale than those of direct training (a step
moves all weights): tune them for each d.

P theta_d is added to the weights in each pass, so that a step costs more than in full training; once folded
in, it costs nothing.

Do not use it to train a model well at low cost: adapters reach more with the same number of parameters. This
measures.

Errors: a dense or sparse P of more than 4 GiB. It owns all parameters; no other surgery can share the model.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.method import Surgery
from trainwright.finetune.intrinsic_dimension._projections import KINDS, Subspace
from trainwright.lm import deltas

FILE = "intrinsic_dimension.safetensors"
NAME = "subspace"
"""The module that holds theta_d, on the model itself."""
HELD = "_subspace"
"""Where the other modules keep it, beside their own modules: theta_d belongs to the model alone."""


class IntrinsicDimension(Surgery):
    """Trains a model in a random subspace of a few dimensions."""

    dimension: int
    """d: how many numbers are trained."""
    projection: Literal["dense", "sparse", "fastfood"] = "fastfood"
    """What random matrix maps them to the parameters."""
    example: ClassVar[dict[str, Any]] = {"dimension": 20}

    def __post_init__(self) -> None:
        if self.dimension < 1:
            raise ValueError(f"dimension must be 1 or more, not {self.dimension}.")

    def claims(self, model: nn.Module) -> set[str]:
        return {"*"}

    def operate(self, model: nn.Module, ctx: Context) -> None:
        parameters = {n: p.requires_grad_(False) for n, p in model.named_parameters()}
        device, sizes = next(iter(parameters.values())).device, {n: p.numel() for n, p in parameters.items()}
        maps = KINDS[self.projection](
            sizes, self.dimension, lambda n: ctx.rng(f"intrinsic_dimension/{n}", at=0), device
        )
        subspace, names = Subspace(maps, self.dimension, device), {id(p): n for n, p in parameters.items()}
        for module in list(model.modules()):
            own = {attribute: names[id(p)] for attribute, p in module._parameters.items() if p is not None}
            if own:
                kind = type(module)
                module.__class__ = type(f"Moved{kind.__name__}", (Moved, kind), {a: moved(a) for a in own})
                module.__dict__[HELD] = (subspace, own)
        model.add_module(NAME, subspace)

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        subspace = getattr(model, NAME)
        delattr(model, NAME)
        for name, parameter in model.named_parameters():
            parameter.add_(subspace.offset(name, parameter.shape))
        for module in model.modules():
            if isinstance(module, Moved):
                module.__class__ = type(module).__bases__[1]
                del module.__dict__[HELD]

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """``intrinsic_dimension.safetensors``: theta_d [d] alone; the seed is in ``surgery.json``."""
        deltas.write({"theta_d": getattr(model, NAME).theta_d}, folder / FILE)

    def load_delta(self, model: nn.Module, folder: Path) -> None:
        deltas.read({"theta_d": getattr(model, NAME).theta_d}, folder / FILE)


class Moved:
    """Mixed into the class of every module with own parameters; they keep names and values, theta_0."""


def moved(attribute: str) -> property:
    """What the module reads as its parameter: theta_0 + P theta_d, or its shard where it is not gathered."""
    def read(self: nn.Module) -> Tensor:
        parameter, (subspace, names) = self._parameters[attribute], self.__dict__[HELD]
        if parameter is None or sharding.local(parameter) is not parameter:
            return parameter
        return parameter + subspace.offset(names[attribute], parameter.shape).to(parameter.dtype)
    return property(read)


class D90(NamedTuple):
    """What a search has found."""

    dimension: int | None
    """The smallest tried that reaches the threshold, or None where none does."""
    threshold: float
    baseline: float
    tried: dict[int, float]
    """The best score of each dimension that was tried."""


def d90(
    measure: Callable[[int | None, float], float],
    dimensions: Sequence[int],
    rates: Sequence[float],
    *,
    start: float = 0.0,
    share: float = 0.9,
) -> D90:
    """The smallest of ``dimensions`` that reaches ``share`` of direct training, tried from below until one
    does.

    Args:
        measure: trains in so many dimensions, or directly (None), at a learning rate, and gives a score;
        larger is better. rates: tried for the baseline and for every dimension alike; the best score counts.
        start: score without training, from which the share is taken: 0 for an accuracy, as in the paper. For
            a loss give ``measure`` as minus the loss, and minus the untrained loss here.
    """
    if not dimensions or not rates:
        raise ValueError("d90 needs dimensions and learning rates to try.")
    baseline = max(measure(None, rate) for rate in rates)
    threshold, tried = start + share * (baseline - start), {}
    for dimension in sorted(set(dimensions)):
        tried[dimension] = max(measure(dimension, rate) for rate in rates)
        if tried[dimension] >= threshold:
            return D90(dimension, threshold, baseline, tried)
    return D90(None, threshold, baseline, tried)
