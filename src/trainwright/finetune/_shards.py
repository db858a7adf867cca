"""Pools of shards that layers share, and linear layers whose addition is put together from them."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainwright.lm.layers import Adapter, Carrier, in_out

if TYPE_CHECKING:
    from trainwright.finetune.mixture_of_shards import MixtureOfShards


class Pools(Carrier):
    """All pools of one method."""

    settings: MixtureOfShards


class Pool(Carrier):
    """The shards of one kind of layer: A [budget layers shards, in / shards] and B [.., out / shards]."""

    def __init__(self, layer: nn.Module, layers: int, s: MixtureOfShards, rng: torch.Generator) -> None:
        super().__init__()
        (inputs, outputs), rows, device = in_out(layer), s.budget * layers * s.shards, layer.weight.device
        start = torch.empty(rows, inputs // s.shards).uniform_(-1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=rng)
        self.A = nn.Parameter(start.to(device))
        self.B = nn.Parameter(torch.zeros(rows, outputs // s.shards, device=device))


class MosLinear(Adapter):
    """A linear layer with an addition of shards."""

    index_A: Tensor
    index_B: Tensor

    def __init__(self, layer: nn.Module, pool: Pool, settings: MixtureOfShards, index: list[Tensor]) -> None:
        super().__init__(layer)
        self.settings, self.pool = settings, (pool,)                  # in a tuple: it belongs to the model, not to this layer
        for name, places in zip(("index_A", "index_B"), index, strict=True):
            self.register_buffer(name, places.to(self.weight.device), persistent=False)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """A [rank, in] and B [out, rank], float32."""
        (pool,), rank = self.pool, self.settings.rank
        return pool.A.index_select(0, self.index_A).view(rank, -1), pool.B.index_select(0, self.index_B).view(rank, -1).T

    def forward(self, x: Tensor) -> Tensor:
        kind = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        rows, (A, B) = x.reshape(-1, self.in_features).to(kind), self.matrices()
        low = F.linear(F.dropout(rows, self.settings.dropout, self.training), A.to(kind))
        y = self.linear(rows).addmm_(low, B.to(kind).T, alpha=self.settings.alpha / self.settings.rank)
        return y.view(*x.shape[:-1], self.out_features)
