"""A linear layer with sparse deltas, and how many deltas each layer of a model gets."""
from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trainwright.core.errors import UserError
from trainwright.core.method import Surgery
from trainwright.lm.layers import Adapter, as_linear_weight, compute_dtype, in_out
from trainwright.lm.sparse_delta import Watch, product

QUIET = 2.0**-20
"""Factor of the candidates' gradients within the chain, so that they do not count in a norm to be clipped."""


class SpielLinear(Adapter):
    """A linear layer with k deltas and, where gradients decide what grows, k candidates that are watched."""

    places: Tensor
    candidates: Tensor
    chosen: Tensor | None
    """Candidates that the first row of a step has shown; that row is the same for all cuts of a step."""

    def __init__(
        self, layer: nn.Module, settings: Surgery, by_gradient: bool, count: int, rng: torch.Generator
    ) -> None:
        super().__init__(layer)
        self.settings, self.by_gradient, device = settings, by_gradient, self.weight.device
        size = self.in_features * self.out_features
        places = torch.randperm(size, generator=rng)[:count].to(
            device, torch.int32 if size < 2**31 else torch.int64
        )
        self.register_buffer("places", places)
        self.spiel_deltas = nn.Parameter(torch.zeros(count, device=device))
        self.choosing, self.chosen = False, None
        if by_gradient:
            self.register_buffer("candidates", places.clone())
            self.spiel_candidates = nn.Parameter(torch.zeros(count, device=device))

    def forward(self, x: Tensor) -> Tensor:
        kind = compute_dtype(x)
        if self.choosing and self.training:               # an evaluation may ask for gradients of its own
            return self.choosing_product(x.to(kind))
        watch = Watch(self.spiel_candidates, self.candidates, QUIET) if self.by_gradient else None
        return product(x.to(kind), self.spiel_deltas, as_linear_weight(self), self.places, self.bias, watch)

    @torch.compiler.disable
    def choosing_product(self, x: Tensor) -> Tensor:
        watch = Watch(self.spiel_candidates, self.candidates, QUIET, self.choose)
        return product(x, self.spiel_deltas, as_linear_weight(self), self.places, self.bias, watch)

    def choose(self, dense: Tensor) -> None:
        """The places of the largest gradients; the first row of a step chooses, no later one."""
        if self.chosen is None:
            self.chosen = dense.reshape(-1).abs().topk(len(self.places)).indices.to(self.places.dtype)

    def remembers(self) -> dict[str, dict[str, Tensor]]:
        """What a run keeps of each parameter. The shapes differ from the parameters', so that what is to be
        forgotten of dropped entries leaves it alone: grown ones do not begin with nothing."""
        k, device = len(self.places), self.weight.device
        if not self.by_gradient:
            return {"spiel_deltas": {"rows": torch.zeros(self.out_features, 1, device=device),
                                     "columns": torch.zeros(self.in_features, 1, device=device)}}
        return {"spiel_deltas": {"adam": torch.zeros(3, k, device=device)},
                "spiel_candidates": {"sums": torch.zeros(2, k, device=device)}}


def counts(model: nn.Module, layers: dict[str, nn.Module], density: float) -> dict[str, int]:
    """Deltas of each layer, in proportion to its size: together ``density`` of the model's parameters.

    Raises:
        UserError: none for a layer, or more than it has weights.
    """
    sizes, total = (
        {n: math.prod(in_out(m)) for n, m in layers.items()},
        sum(p.numel() for p in model.parameters()),
    )
    found = {n: int(int(density * total) * size / sum(sizes.values())) for n, size in sizes.items()}
    for name, count in found.items():
        if not 0 < count < sizes[name]:
            raise UserError(
                f"spiel: density = {density} of {total} parameters gives {count} deltas to {name} with its "
                f"{sizes[name]} weights: {'lower' if count else 'raise'} density, or choose other 'layers'."
            )
    return found
