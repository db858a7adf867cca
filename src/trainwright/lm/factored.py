"""A linear layer that keeps parts of which its matrix is made, and no matrix."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from trainwright.lm.layers import in_out


class FactoredLinear(nn.Module):
    """Takes the place of a linear layer, and turns back into one. A subclass says what it keeps: ``product`` and ``matrix``."""

    def __init__(self, layer: nn.Module, settings: Any) -> None:
        super().__init__()
        self.settings, self.transposed, self.bias = settings, isinstance(layer, Conv1D), layer.bias
        self.in_features, self.out_features = in_out(layer)
        self.train(layer.training)

    def product(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        """W x + bias for rows x [n, in], in the dtype of ``rows``, which is the one that autocast asks for."""
        raise NotImplementedError

    def matrix(self) -> Tensor:
        """W [out, in], made anew."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        kind = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        bias = None if self.bias is None else self.bias.to(kind)
        return self.product(x.reshape(-1, self.in_features).to(kind), bias).view(*x.shape[:-1], self.out_features)

    @property
    def weight(self) -> Tensor:
        """W, as the layer before it kept it; made anew each time."""
        return self.matrix().T if self.transposed else self.matrix()

    def plain(self) -> nn.Module:
        """The ordinary layer that computes the same."""
        with torch.device("meta"):
            layer = (Conv1D(self.out_features, self.in_features) if self.transposed
                     else nn.Linear(self.in_features, self.out_features, bias=self.bias is not None))
        layer.weight, layer.bias = nn.Parameter(self.weight.contiguous()), self.bias
        return layer.train(self.training)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
