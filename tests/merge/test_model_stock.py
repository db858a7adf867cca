"""Model Stock: the share of the average follows from angles, and lands nearest to the shell's centre."""

from __future__ import annotations

import math

import pytest
import torch

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.merge.model_stock import ModelStock, share
from trainwright.stages.merge import combined

BASE = torch.tensor([1.0, -1.0, 0.5])


@pytest.mark.parametrize("angle", [0.1, 0.6, 1.2])
def test_two_models_by_hand(angle: float) -> None:
    one = torch.tensor([1.0, 0.0, 0.0])
    two = 3 * torch.tensor([math.cos(angle), math.sin(angle), 0.0])
    t = 2 * math.cos(angle) / (1 + math.cos(angle))
    made = combined("w", [BASE + one, BASE + two], BASE, [ModelStock()], Context())
    assert torch.allclose(made, BASE + t * (one + two) / 2, atol=1e-6)


@pytest.mark.parametrize("models", [2, 3, 5])
def test_it_is_the_nearest_point_to_the_centre_of_a_shell(models: int) -> None:
    """In many dimensions, models at a distance from a centre, in random directions: of all points between
    base and average, that of the method is the nearest to the centre."""
    draw = torch.Generator().manual_seed(models)
    centre = torch.randn(100_000, generator=draw)
    tuned = [centre + torch.randn(100_000, generator=draw) for _ in range(models)]
    mean = torch.stack(tuned).mean(0)
    best = float((mean @ centre) / (mean @ mean))
    assert share([t.clone() for t in tuned]) == pytest.approx(best, abs=0.01)


def test_limits() -> None:
    v = torch.tensor([1.0, 2.0, 3.0])
    assert share([v, 2 * v, 5 * v]) == pytest.approx(1.0)
    assert share([v, -v]) == 0.0 and share([v, torch.zeros(3)]) == 0.0
    assert torch.equal(combined("w", [BASE + v, BASE - v], BASE, [ModelStock()], Context()), BASE)


def test_mistakes() -> None:
    with pytest.raises(UserError, match="2 or more"):
        combined("w", [BASE], BASE, [ModelStock()], Context())
    with pytest.raises(UserError, match="model_stock needs the model"):
        combined("w", [BASE, BASE], None, [ModelStock()], Context())
