"""Linear decay: the corners of its curve."""

from __future__ import annotations

import pytest
from torch import nn

from trainwright.core.context import Context, View
from trainwright.core.errors import UserError
from trainwright.core.method import Set
from trainwright.core.settings import make
from trainwright.optim.linear import Linear


def factors(method: Linear, steps: int) -> list[float]:
    """The factor of the learning rate at each step of a run."""
    knob, seen = 1.0, []
    for step in range(steps):
        for command in method.tick(View(step, steps, {}, {"lr": knob}), {}):
            assert isinstance(command, Set) and command.knob == "lr"
            knob = command.value
        seen.append(knob)
    return seen


def test_the_corners_by_hand() -> None:
    """2 steps up, then 4 down: the first after the warm-up is whole, the last still moves by a quarter."""
    assert factors(Linear(warmup=2), 6) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_it_falls_towards_final() -> None:
    assert factors(Linear(warmup=0, final=0.2), 4) == pytest.approx([1.0, 0.8, 0.6, 0.4])


def test_after_the_last_step_it_stays() -> None:
    assert [
        c.value for c in Linear(warmup=0, final=0.2).tick(View(9, 4, {}, {"lr": 1.0}), {})
    ] == pytest.approx([0.2])


def test_no_step_is_wasted() -> None:
    assert min(factors(Linear(warmup=0.1), 50)) > 0


def test_it_owns_the_learning_rate() -> None:
    assert Linear().claims(nn.Module()) == {"knob:lr"}


@pytest.mark.parametrize("wrong", [{"warmup": -0.1}, {"warmup": 2.5}, {"final": 1.5}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        make(Linear, wrong, "here")


def test_a_stage_that_is_too_short_is_refused() -> None:
    with pytest.raises(UserError, match=r"warmup = 20.* do not fit into a stage of 10 steps"):
        Linear(warmup=20).init(nn.Linear(1, 1), Context(steps=10))
    assert Linear(warmup=0.5).init(nn.Linear(1, 1), Context(steps=10)) == {}
