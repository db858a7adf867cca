"""Weight decay: what is added to the update."""

from __future__ import annotations

import pytest
import torch

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make
from trainwright.optim.weight_decay import WeightDecay

PARAMS = {"w": torch.tensor([[2.0, -4.0]]), "bias": torch.tensor([8.0])}
UPDATES = {"w": torch.tensor([[1.0, 1.0]]), "bias": torch.tensor([1.0])}


def test_the_share_of_the_weights_is_added_by_hand() -> None:
    out = WeightDecay(rate=0.5).update(UPDATES, PARAMS, {}, Context())
    assert torch.equal(out["w"], torch.tensor([[2.0, -1.0]]))
    assert torch.equal(out["bias"], torch.tensor([1.0]))
    assert torch.equal(UPDATES["w"], torch.tensor([[1.0, 1.0]]))


def test_one_dimension_decays_on_demand() -> None:
    out = WeightDecay(rate=0.5, decay_1d=True).update(UPDATES, PARAMS, {}, Context())
    assert torch.equal(out["bias"], torch.tensor([5.0]))


def test_a_rate_of_zero_changes_nothing() -> None:
    assert WeightDecay(rate=0.0).update(UPDATES, PARAMS, {}, Context()) is UPDATES


def test_alone_it_shrinks_geometrically() -> None:
    """With no gradient, p after n steps is (1 - lr rate)^n p."""
    p = {"w": torch.ones(2, 2, dtype=torch.float64)}
    for _ in range(10):
        p["w"] -= (
            0.1
            * WeightDecay(rate=0.2).update({"w": torch.zeros(2, 2, dtype=torch.float64)}, p, {}, Context())[
                "w"
            ]
        )
    torch.testing.assert_close(p["w"], torch.full((2, 2), 0.98**10, dtype=torch.float64))


def test_a_negative_rate_is_refused() -> None:
    with pytest.raises(UserError, match="rate must be 0 or more"):
        make(WeightDecay, {"rate": -0.1}, "here")
