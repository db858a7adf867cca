"""Early stopping: which measurements count as misses, and what it says of a number that there is not."""
from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from trainwright.core.context import Context, View
from trainwright.core.errors import UserError
from trainwright.core.method import Stop
from trainwright.core.settings import make
from trainwright.optim.early_stop import EarlyStop


def stops_at(method: EarlyStop, values: list[float]) -> int | None:
    """Which of the measurements ends the stage, counted from 1. Between any two lies a step without one."""
    state: dict[str, Any] = method.init(nn.Linear(1, 1), Context())
    for i, value in enumerate(values, 1):
        assert not list(method.tick(View(2 * i - 1, 99, {"loss": 0.0}, {}), state))
        said = list(method.tick(View(2 * i, 99, {f"eval/{method.metric}": value}, {}), state))
        if said:
            assert isinstance(said[0], Stop) and not said[0].failed
            return i
    return None


@pytest.mark.parametrize(("settings", "values", "at"), [
    ({"patience": 2}, [3, 2, 2.5, 1.9, 2, 1.95, 1], 6),       # two in a row, against the best
    ({"patience": 2}, [3, 2, 1, 0], None),
    ({"patience": 1}, [1, 1], 2),                             # as good is no improvement
    ({"patience": 2, "least": 0.5}, [3, 2.8, 2.6], 3),        # small steps are none, even if they add up
    ({"patience": 2, "least": 0.5}, [3, 2.8, 2.4, 2.2], None),
    ({"patience": 1}, [1, float("nan")], 2),
    ({"patience": 2}, [float("nan"), float("nan")], 2),
])
def test_when_it_stops(settings: dict[str, Any], values: list[float], at: int | None) -> None:
    assert stops_at(EarlyStop(metric="loss/code", **settings), values) == at


def test_the_name_says_which_way_is_better() -> None:
    rising = [0.1, 0.2, 0.3]
    assert stops_at(EarlyStop(metric="accuracy/code", patience=1), rising) is None
    assert stops_at(EarlyStop(metric="loss/code", patience=1), rising) == 2
    assert stops_at(EarlyStop(metric="delight", patience=1, better="higher"), rising) is None
    with pytest.raises(UserError, match="the name 'delight' does not say which it is"):
        make(EarlyStop, {"metric": "delight"}, "here")


def test_a_number_that_is_not_measured() -> None:
    method = EarlyStop(metric="loss/cod")
    state = method.init(nn.Linear(1, 1), Context())
    with pytest.raises(UserError, match=r"no number 'loss/cod' \(did you mean 'loss/code'\?\)"):
        list(method.tick(View(1, 9, {"eval/loss/code": 1.0}, {}), state))
