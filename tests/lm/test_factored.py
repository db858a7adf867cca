"""A layer of factors computes what the plain layer of their product computes, and turns back into it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from trainwright.lm.factored import FactoredLinear
from trainwright.lm.layers import as_linear_weight


class Outer(FactoredLinear):
    """W = a b^T."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer, settings=None)
        self.a, self.b = nn.Parameter(torch.arange(1.0, 4.0)), nn.Parameter(torch.tensor([2.0, -1.0]))

    def product(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        out = (rows @ self.b.to(rows.dtype))[:, None] * self.a.to(rows.dtype)
        return out if bias is None else out + bias

    def matrix(self) -> Tensor:
        return self.a[:, None] * self.b


LAYERS = [nn.Linear(2, 3), nn.Linear(2, 3, bias=False), Conv1D(3, 2)]


@pytest.mark.parametrize("layer", LAYERS, ids=["linear", "no bias", "conv1d"])
def test_it_computes_what_its_plain_layer_computes(layer: nn.Module) -> None:
    factored = Outer(layer.train(False))
    plain = factored.plain()
    assert type(plain) is type(layer) and not factored.training and not plain.training
    assert factored.weight.shape == layer.weight.shape and plain.bias is layer.bias
    assert torch.equal(as_linear_weight(plain), factored.matrix())
    x = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(factored(x), plain(x), atol=1e-6)


def test_it_computes_in_the_dtype_that_autocast_asks_for() -> None:
    factored, x = Outer(nn.Linear(2, 3)), torch.ones(4, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert factored(x).dtype == torch.bfloat16
    assert factored(x).dtype == torch.float32
