"""Linear layers that keep the factors of their matrix and no matrix.

``FactoredLinear`` takes the place of a linear layer (``nn.Linear`` or transformers' ``Conv1D``), and
``plain`` turns it back into one. A subclass registers its factors as parameters and defines ``product``
and ``matrix``; both must be the same function of the factors. It keeps the layer's bias, its training mode
and, as ``weight``, the layout of the matrix that the model expects.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from trainwright.lm.layers import in_out


class FactoredLinear(nn.Module):
    """Replaces a linear layer. A subclass registers its factors and defines ``product`` and ``matrix``."""

    def __init__(self, layer: nn.Module, settings: Any) -> None:
        super().__init__()
        self.settings, self.transposed, self.bias = settings, isinstance(layer, Conv1D), layer.bias
        self.in_features, self.out_features = in_out(layer)
        self.train(layer.training)

    def product(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        """W x + bias for rows x [n, in], in the dtype of ``rows`` (autocast's, where it is on)."""
        raise NotImplementedError

    def matrix(self) -> Tensor:
        """W [out, in], assembled from the factors."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        bias = None if self.bias is None else self.bias.to(kind)
        rows = x.reshape(-1, self.in_features).to(kind)
        return self.product(rows, bias).view(*x.shape[:-1], self.out_features)

    @property
    def weight(self) -> Tensor:
        """W in the layout of the layer that was replaced; assembled at each access."""
        return self.matrix().T if self.transposed else self.matrix()

    def plain(self) -> nn.Module:
        """The ordinary layer that computes the same."""
        with torch.device("meta"):
            if self.transposed:
                layer: nn.Module = Conv1D(self.out_features, self.in_features)
            else:
                layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        layer.weight, layer.bias = nn.Parameter(self.weight.contiguous()), self.bias
        return layer.train(self.training)

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}"
