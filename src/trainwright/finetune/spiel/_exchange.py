"""Which places of a layer are dropped and which are grown: by gradients, or by the sums that SM3 keeps."""
from __future__ import annotations

import torch
from torch import Tensor

from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.method import State, Tensors
from trainwright.finetune.spiel._layer import SpielLinear
from trainwright.finetune.spiel._steps import unbias


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


def by_gradient(
    places: Tensor, deltas: Tensor, count: int, candidates: Tensor, scores: Tensor
) -> tuple[Tensor, Tensor]:
    """The slots that change, and the candidates that take them.

    Dropped are the ``count`` deltas of smallest size, grown as many candidates of the highest scores that are
    not active still. A place that is both stays as it is.
    """
    dropped = deltas.abs().topk(count, largest=False).indices
    stays = torch.ones_like(deltas, dtype=torch.bool).index_fill_(0, dropped, False)
    free = (~torch.isin(candidates, places[stays])).nonzero()[:, 0]
    grown = free[scores[free].topk(min(count, len(free))).indices]
    slots = dropped[~torch.isin(places[dropped], candidates[grown])]
    grown = grown[~torch.isin(candidates[grown], places[dropped])]
    return slots[:len(grown)], grown


def by_momentum(
    places: Tensor, deltas: Tensor, count: int, rows: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    """The slots of the ``count`` smallest deltas, and the inactive places of the largest row times column."""
    scores = (rows.view(-1, 1) * columns.view(1, -1)).view(-1)
    scores[places] = -1
    count = min(count, len(scores) - len(places))
    slots = deltas.abs().topk(count, largest=False).indices
    return slots, scores.topk(count).indices.to(places.dtype)
