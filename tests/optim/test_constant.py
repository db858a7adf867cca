"""Constant learning rate: the corners of its curve."""

from __future__ import annotations

import pytest
from torch import nn

from trainwright.core.context import Context, View
from trainwright.core.errors import UserError
from trainwright.core.method import Set
from trainwright.core.settings import make
from trainwright.optim.constant import Constant


def factors(method: Constant, steps: int) -> list[float]:
    """The factor of the learning rate at each step of a run."""
    knob, seen = 1.0, []
    for step in range(steps):
        for command in method.tick(View(step, steps, {}, {"lr": knob}), {}):
            assert isinstance(command, Set) and command.knob == "lr"
            knob = command.value
        seen.append(knob)
    return seen


def test_warm_up_in_equal_parts_then_flat() -> None:
    assert factors(Constant(warmup=4), 7) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]


def test_a_share_of_the_steps() -> None:
    assert factors(Constant(warmup=0.2), 10) == factors(Constant(warmup=2), 10) == [0.5] + 9 * [1.0]
    assert factors(Constant(warmup=0.29), 100) == factors(Constant(warmup=29), 100), (
        "0.29 * 100 is 28.999…96 in floats"
    )


def test_without_warm_up_it_says_nothing() -> None:
    assert list(Constant().tick(View(0, 10, {}, {"lr": 1.0}), {})) == []


def test_it_owns_the_learning_rate() -> None:
    assert Constant().claims(nn.Module()) == {"knob:lr"}


@pytest.mark.parametrize("wrong", [{"warmup": -0.1}, {"warmup": 2.5}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        make(Constant, wrong, "here")


def test_a_stage_that_is_too_short_is_refused() -> None:
    with pytest.raises(UserError, match=r"warmup = 20.* do not fit into a stage of 10 steps"):
        Constant(warmup=20).init(nn.Linear(1, 1), Context(steps=10))
    assert Constant(warmup=0.5).init(nn.Linear(1, 1), Context(steps=10)) == {}
