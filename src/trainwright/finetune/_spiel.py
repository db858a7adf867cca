"""The layers of sparse fine-tuning whose places move: what they hold, which places are dropped and grown, and both optimizers."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import State, Tensors
from trainwright.lm.layers import Adapter, as_linear_weight, compute_dtype, in_out
from trainwright.lm.sparse_delta import Watch, product

if TYPE_CHECKING:
    from trainwright.finetune.spiel import Spiel

QUIET = 2.0**-20
"""Factor of the candidates' gradients on their way through the chain, so that they do not count in a norm that is clipped."""


class SpielLinear(Adapter):
    """A linear layer with k numbers added to its weight. Where gradients decide what grows, k candidates are watched besides."""

    places: Tensor
    candidates: Tensor
    chosen: Tensor | None
    """Candidates that the first row of a step has shown; that row is the same for all cuts of a step."""

    def __init__(self, layer: nn.Module, settings: Spiel, count: int, rng: torch.Generator) -> None:
        super().__init__(layer)
        self.settings, device = settings, self.weight.device
        size = self.in_features * self.out_features
        places = torch.randperm(size, generator=rng)[:count].to(device, torch.int32 if size < 2**31 else torch.int64)
        self.register_buffer("places", places)
        self.spiel_deltas = nn.Parameter(torch.zeros(count, device=device))
        self.choosing, self.chosen = False, None
        if settings.by_gradient:
            self.register_buffer("candidates", places.clone())
            self.spiel_candidates = nn.Parameter(torch.zeros(count, device=device))

    def forward(self, x: Tensor) -> Tensor:
        kind = compute_dtype(x)
        if self.choosing:
            return self.choosing_product(x.to(kind))
        watch = Watch(self.spiel_candidates, self.candidates, QUIET) if self.settings.by_gradient else None
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
        """What a run keeps of each parameter. The shapes differ from the parameters', so that what is to be forgotten of dropped
        entries leaves it alone: grown ones do not begin with nothing."""
        k, device = len(self.places), self.weight.device
        if not self.settings.by_gradient:
            return {"spiel_deltas": {"rows": torch.zeros(self.out_features, 1, device=device),
                                     "columns": torch.zeros(self.in_features, 1, device=device)}}
        return {"spiel_deltas": {"adam": torch.zeros(3, k, device=device)},
                "spiel_candidates": {"sums": torch.zeros(2, k, device=device)}}


# ---- what is dropped and grown --------------------------------------------------------------------------------------


def counts(model: nn.Module, layers: dict[str, nn.Module], density: float) -> dict[str, int]:
    """Deltas of each layer, in proportion to its size: together ``density`` of the model's parameters.

    Raises:
        UserError: none for a layer, or more than it has weights.
    """
    sizes, total = {n: math.prod(in_out(m)) for n, m in layers.items()}, sum(p.numel() for p in model.parameters())
    found = {n: int(int(density * total) * size / sum(sizes.values())) for n, size in sizes.items()}
    for name, count in found.items():
        if not 0 < count < sizes[name]:
            raise UserError(f"spiel: density = {density} of {total} parameters gives {count} deltas to {name} with its "
                            f"{sizes[name]} weights: {'lower' if count else 'raise'} density, or choose other 'layers'.")
    return found


def agree(layers: dict[str, SpielLinear]) -> None:
    """All ranks take the candidates of the one that had the step's first row."""
    chosen = sharding.together({n: m.chosen.cpu() for n, m in layers.items() if m.chosen is not None})
    for name, places in chosen.items():
        layers[name].candidates.copy_(places)


def exchange(name: str, layer: SpielLinear, share: float, params: Tensors, state: State, ctx: Context) -> int:
    """Drop and grow in one layer; returns how many places changed."""
    settings, parameter, leaves = layer.settings, params[f"{name}.spiel_deltas"], state["param"]
    deltas, mine = sharding.full(parameter.detach()), leaves[f"{name}.spiel_deltas"]
    count = int(share * len(deltas))
    if settings.by_gradient:
        sums, seen = leaves[f"{name}.spiel_candidates"]["sums"], state["shared"]["captured"]
        slots, grown = by_gradient(layer.places, deltas, count, layer.candidates, sums[0].abs())
        age = torch.full_like(sums[0, grown], seen)
        unbiased = [unbias(beta, age) for beta in (settings.beta1, settings.beta2)]
        mine["adam"][:, slots] = torch.stack([*(sums[:, grown] / seen * torch.stack(unbiased)), age])
        new = layer.candidates[grown]
        sums.zero_()
    else:
        slots, new = by_momentum(layer.places, deltas, count, mine["rows"], mine["columns"])
    layer.places[slots] = new
    fresh = sharding.like(torch.zeros_like(deltas, dtype=torch.bool).index_fill_(0, slots, True), parameter)
    sharding.local(parameter.detach()).masked_fill_(sharding.local(fresh), 0)
    ctx.forget(f"{name}.spiel_deltas", fresh)
    return len(slots)


def by_gradient(places: Tensor, deltas: Tensor, count: int, candidates: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The slots that change, and the candidates that take them.

    Dropped are the ``count`` deltas of smallest size, grown as many candidates of the highest scores that are not active
    still. A place that is both stays as it is.
    """
    dropped = deltas.abs().topk(count, largest=False).indices
    stays = torch.ones_like(deltas, dtype=torch.bool).index_fill_(0, dropped, False)
    free = (~torch.isin(candidates, places[stays])).nonzero()[:, 0]
    grown = free[scores[free].topk(min(count, len(free))).indices]
    slots = dropped[~torch.isin(places[dropped], candidates[grown])]
    grown = grown[~torch.isin(candidates[grown], places[dropped])]
    return slots[:len(grown)], grown


def by_momentum(places: Tensor, deltas: Tensor, count: int, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The slots of the ``count`` smallest deltas, and the places, none of them active before, of the largest row times column."""
    scores = (rows.view(-1, 1) * columns.view(1, -1)).view(-1)
    scores[places] = -1
    count = min(count, len(scores) - len(places))
    slots = deltas.abs().topk(count, largest=False).indices
    return slots, scores.topk(count).indices.to(places.dtype)


# ---- steps ------------------------------------------------------------------------------------------------------------


def stepped(grad: Tensor, layer: SpielLinear, leaf: Tensors) -> Tensor:
    """What the loop subtracts, times the learning rate."""
    settings = layer.settings
    if settings.by_gradient:
        return adam(grad, leaf["adam"], settings.beta1, settings.beta2, settings.eps)
    return sm3(grad, layer.places, leaf["rows"], leaf["columns"], settings.eps)


def adam(grad: Tensor, leaf: Tensor, beta1: float, beta2: float, eps: float) -> Tensor:
    """Adam's step where each entry has an age of its own; ``leaf`` [3, k] holds both moments and the ages."""
    m, v, age = leaf
    age.add_(1)
    m.lerp_(grad, 1 - beta1)
    v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    return (m / unbias(beta1, age)) / ((v / unbias(beta2, age)).sqrt_() + eps)


def unbias(beta: float, age: Tensor) -> Tensor:
    """1 - beta^age, without the digits that the plain difference loses."""
    return -torch.expm1(age * math.log(beta)) if beta else torch.ones_like(age)


def sm3(grad: Tensor, places: Tensor, rows: Tensor, columns: Tensor, eps: float) -> Tensor:
    """SM3's step on the entries at ``places``; ``rows`` [out, 1] and ``columns`` [in, 1] remember the largest sums of squares."""
    i, j = (places // len(columns)).long(), (places % len(columns)).long()
    total = torch.minimum(rows[i, 0], columns[j, 0]).addcmul_(grad, grad)
    rows[:, 0].scatter_reduce_(0, i, total, "amax")
    columns[:, 0].scatter_reduce_(0, j, total, "amax")
    return grad / (total + eps).sqrt_()
