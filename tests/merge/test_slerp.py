"""The arc between two tensors: its ends, its length, its middle."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make
from trainwright.merge.slerp import Slerp, angle
from trainwright.stages.merge import combined


def unit(seed: int, *shape: int) -> Tensor:
    t = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return t / t.norm()


A, B = unit(0, 6, 5), unit(1, 6, 5)


def merged(tensors: list[Tensor], t: float = 0.5) -> Tensor:
    return combined("w", tensors, None, [Slerp(t=t)], Context())


def test_by_hand_on_a_quarter_circle() -> None:
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert torch.allclose(merged([x, y], 1 / 3), torch.tensor([math.cos(math.pi / 6), math.sin(math.pi / 6)]))
    assert torch.allclose(merged([2 * x, 4 * y], 0.5), torch.tensor([2.0, 4.0]) / math.sqrt(2))


def test_ends_are_the_models() -> None:
    assert torch.allclose(merged([A, B], 0.0), A, atol=1e-7)
    assert torch.allclose(merged([A, B], 1.0), B, atol=1e-7)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_length_is_kept_and_the_angle_is_shared_out(t: float) -> None:
    out = merged([A, B], t)
    assert out.norm() == pytest.approx(1.0, abs=1e-6)
    assert ((1 - t) * A + t * B).norm() < 0.99
    assert angle(A, out) == pytest.approx(t * angle(A, B), abs=1e-5)


def test_colinear_and_zero_are_interpolated_on_the_line() -> None:
    for other in (3 * A, -A, torch.zeros_like(A), A + 1e-7):
        assert torch.allclose(merged([A, other], 0.25), 0.75 * A + 0.25 * other, atol=1e-6)


def test_angle_is_exact_where_arccos_is_not() -> None:
    x = torch.tensor([1.0, 0.0])
    for omega in (1e-3, 0.1, 2.0, 3.1):
        assert angle(x, 5 * torch.tensor([math.cos(omega), math.sin(omega)])) == pytest.approx(
            omega, rel=1e-4
        )


def test_dtype_and_integers() -> None:
    assert merged([A.bfloat16(), B]).dtype == torch.bfloat16
    assert torch.equal(merged([torch.tensor([1]), torch.tensor([9])]), torch.tensor([1]))


def test_bad_settings() -> None:
    with pytest.raises(UserError, match=r"t must be from 0 to 1"):
        make(Slerp, {"t": 1.5}, "merged")
    with pytest.raises(UserError, match="must name 2, not 3"):
        merged([A, B, A])
