"""Weighted averages, by hand."""
from __future__ import annotations

import pytest
import torch

from trainwright.core.errors import UserError
from trainwright.core.settings import make
from trainwright.merge.interpolate import Interpolate

A, B, C = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 2.0], [-1.0, 0.0]]), torch.ones(2, 2)


def test_by_hand() -> None:
    assert torch.equal(Interpolate().combine([A, B], None), torch.tensor([[3.0, 2.0], [1.0, 2.0]]))
    assert torch.allclose(Interpolate(weights=(0.25, 0.75)).combine([A, B], None), torch.tensor([[4.0, 2.0], [0.0, 1.0]]))
    assert torch.allclose(Interpolate().combine([A, B, C], None), (A + B + C) / 3)
    assert torch.allclose(Interpolate(weights=(1.5, -0.5)).combine([A, B], None), A + 0.5 * (A - B))


def test_ends_are_the_models() -> None:
    assert torch.equal(Interpolate(weights=(1.0, 0.0)).combine([A, B], None), A)
    assert torch.equal(Interpolate(weights=(0.0, 1.0)).combine([A, B], None), B)


def test_computes_in_float32_and_keeps_dtype_and_inputs() -> None:
    small = [torch.tensor([1.0 + i / 128]).bfloat16() for i in range(3)]
    kept = [t.clone() for t in small]
    out = Interpolate().combine(small, None)
    assert out.dtype == torch.bfloat16 and torch.equal(out, small[1]) and all(map(torch.equal, small, kept))
    counts = torch.tensor([1, 2])
    assert torch.equal(Interpolate().combine([counts, counts + 1], None), counts)


def test_bad_weights() -> None:
    with pytest.raises(UserError, match="add up to 1"):
        make(Interpolate, {"weights": [0.5, 0.6]}, "merged")
    with pytest.raises(UserError, match="2 numbers for 3 models"):
        Interpolate(weights=(0.5, 0.5)).combine([A, B, C], None)
    assert make(Interpolate, {"weights": [0, 1]}, "merged") == Interpolate(weights=(0.0, 1.0))
