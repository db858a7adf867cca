"""A static mixture sets its knob where it is not set yet, and owns it."""
from __future__ import annotations

import pytest
from torch import nn

from trainwright.core.context import Context, View
from trainwright.core.errors import UserError
from trainwright.core.method import Set
from trainwright.data.order.mixture import Mixture


def test_it_sets_its_knob_where_it_is_not_set():
    method = Mixture(weights={"a": 1.0, "b": 2.0})
    assert list(method.tick(View(0, 9, {}, {}), {})) == [Set("mixture", {"a": 1.0, "b": 2.0})]
    assert list(method.tick(View(1, 9, {}, {"mixture": {"a": 1.0, "b": 2.0}}), {})) == []
    on = method.tick(View(5, 9, {}, {"mixture": {"a": 1.0}}), {})
    assert list(on) == [Set("mixture", {"a": 1.0, "b": 2.0})], (
        "a run that goes on with a state of another mixture"
    )
    assert method.claims(nn.Module()) == {"knob:mixture"}


@pytest.mark.parametrize("weights", [{"a": 0.0}, {"a": -1.0, "b": 2.0}, {"a": float("nan")}])
def test_weights_must_say_something(weights: dict[str, float]):
    with pytest.raises(ValueError, match="weights"):
        Mixture(weights=weights)


def test_without_weights_nothing_begins():
    with pytest.raises(UserError, match="say weights"):
        Mixture().init(nn.Module(), Context())
