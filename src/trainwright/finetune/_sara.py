"""Layers whose smallest weights are trained in place, how small those are, and the gradient of a nuclear norm."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.finetune._sparse_delta import product, scattered
from trainwright.lm.layers import Adapter, as_linear_weight

if TYPE_CHECKING:
    from trainwright.finetune.sara import Sara

RANK = 1e-6
"""Singular values below this share of the largest have no direction that could be told."""
INFINITY = 0x7F800000
"""Its bits; numbers of float32 that are not negative have the order of their bits."""


class SaraLinear(Adapter):
    """A linear layer that trains its weights below a limit; they lie in a vector, and ``weight`` has zeros in their places."""

    places: Tensor

    @torch.no_grad()
    def __init__(self, layer: nn.Module, settings: Sara, limit: float) -> None:
        super().__init__(layer)
        self.settings, self.limit, weight = settings, limit, as_linear_weight(self)
        small = weight.abs() < limit
        places = small.reshape(-1).nonzero()[:, 0]
        self.register_buffer("places", places.to(torch.int32 if weight.numel() < 2**31 else torch.int64))
        self.sara_values = nn.Parameter(weight.reshape(-1)[places].float())
        weight.masked_fill_(small, 0)

    def forward(self, x: Tensor) -> Tensor:
        kind = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        return product(x.to(kind), self.sara_values, as_linear_weight(self), self.places, self.bias)

    def whole(self) -> Tensor:
        """The weight that the layer computes with, [out, in], float32."""
        return scattered(as_linear_weight(self), self.sara_values.detach(), self.places, torch.float32)

    def dense(self, values: Tensor) -> Tensor:
        """Numbers at the places, zeros elsewhere: [out, in]."""
        out = values.new_zeros(self.out_features * self.in_features).index_add_(0, self.places, values)
        return out.view(self.out_features, self.in_features)

    def keep(self, weight: Tensor, values: Tensor) -> None:
        """Write numbers into the layer's weight (the parameter, or a rank's part of it) at the places, which are zeros there."""
        dense = self.dense(values).T.contiguous() if self.transposed else self.dense(values)
        sharding.local(weight.detach()).add_(sharding.local(sharding.like(dense.to(weight.dtype), weight)))


def smallest(weights: Sequence[Tensor], share: float) -> float:
    """The size below which the ``share`` of all weights together lies, found by halving: nothing is sorted."""
    wanted, low, high = max(1, int(share * sum(w.numel() for w in weights))), 0, INFINITY
    while low < high:
        middle = (low + high) // 2
        if sum(int((w.abs() < _number(middle)).sum()) for w in weights) >= wanted:
            high = middle
        else:
            low = middle + 1
    return _number(low)


def _number(bits: int) -> float:
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))


def polar(layer: SaraLinear, values: Tensor) -> Tensor:
    """The gradient of the nuclear norm of the matrix of ``values``: U V' at the places, without terms of no size."""
    U, S, V = torch.linalg.svd(layer.dense(values.detach()), full_matrices=False)
    known = RANK * S[0] < S
    return (U[:, known] @ V[known]).reshape(-1)[layer.places.long()]
