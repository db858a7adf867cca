"""Weighted averages, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make
from trainwright.merge.interpolate import Interpolate
from trainwright.stages.merge import combined

A, B, C = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 2.0], [-1.0, 0.0]]), torch.ones(2, 2)


def merged(tensors: list[Tensor], *weights: float) -> Tensor:
    return combined("w", tensors, None, [Interpolate(weights=weights)], Context())


def test_by_hand() -> None:
    assert torch.equal(merged([A, B]), torch.tensor([[3.0, 2.0], [1.0, 2.0]]))
    assert torch.allclose(merged([A, B], 0.25, 0.75), torch.tensor([[4.0, 2.0], [0.0, 1.0]]))
    assert torch.allclose(merged([A, B, C]), (A + B + C) / 3)
    assert torch.allclose(merged([A, B], 1.5, -0.5), A + 0.5 * (A - B))


def test_ends_are_the_models() -> None:
    assert torch.equal(merged([A, B], 1.0, 0.0), A)
    assert torch.equal(merged([A, B], 0.0, 1.0), B)


def test_computes_in_float32_and_keeps_dtype_and_inputs() -> None:
    small = [torch.tensor([1.0 + i / 128]).bfloat16() for i in range(3)]
    kept = [t.clone() for t in small]
    out = merged(small)
    assert out.dtype == torch.bfloat16 and torch.equal(out, small[1]) and all(map(torch.equal, small, kept))
    counts = torch.tensor([1, 2])
    assert torch.equal(merged([counts, counts + 1]), counts)


def test_bad_weights() -> None:
    with pytest.raises(UserError, match="add up to 1"):
        make(Interpolate, {"weights": [0.5, 0.6]}, "merged")
    with pytest.raises(UserError, match="2 numbers for 3 models"):
        merged([A, B, C], 0.5, 0.5)
    assert make(Interpolate, {"weights": [0, 1]}, "merged") == Interpolate(weights=(0.0, 1.0))
