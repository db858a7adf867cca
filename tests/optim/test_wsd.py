"""Warm-up, stable, decay: the corners of its curve."""

from __future__ import annotations

import math

import pytest
from torch import nn

from trainwright.core.context import Context, View
from trainwright.core.errors import UserError
from trainwright.core.method import Set
from trainwright.core.settings import make
from trainwright.optim.wsd import Wsd


def factors(method: Wsd, steps: int) -> list[float]:
    """The factor of the learning rate at each step of a run."""
    knob, seen = 1.0, []
    for step in range(steps):
        for command in method.tick(View(step, steps, {}, {"lr": knob}), {}):
            assert isinstance(command, Set) and command.knob == "lr"
            knob = command.value
        seen.append(knob)
    return seen


def test_the_corners_by_hand() -> None:
    """2 up, 2 flat, 4 down: the first of the decay is whole, then 1 - sqrt(1/4), 1 - sqrt(2/4), 1 -
    sqrt(3/4)."""
    falling = [1.0, 0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75)]
    assert factors(Wsd(warmup=2, decay=4), 8) == pytest.approx([0.5, 1.0, 1.0, 1.0, *falling])
    assert factors(Wsd(warmup=2, decay=4, shape="linear"), 8) == pytest.approx(
        [0.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    )


def test_the_stable_part_does_not_know_the_end() -> None:
    """What the schedule is for: until the decay begins, a longer run takes the same steps."""
    assert factors(Wsd(warmup=5, decay=10), 50)[:40] == factors(Wsd(warmup=5, decay=10), 100)[:40]


def test_it_falls_towards_final() -> None:
    assert factors(Wsd(warmup=0, decay=0.5, final=0.2, shape="linear"), 4) == pytest.approx(
        [1.0, 1.0, 1.0, 0.6]
    )


def test_without_decay_it_is_constant() -> None:
    assert factors(Wsd(warmup=2, decay=0), 4) == [0.5, 1.0, 1.0, 1.0]


def test_shares_that_fill_the_stage_fit_any_stage() -> None:
    for steps in range(1, 30):
        assert Wsd(warmup=0.5, decay=0.5).init(nn.Linear(1, 1), Context(steps=steps)) == {}
        assert min(factors(Wsd(warmup=0.5, decay=0.5), steps)) > 0


def test_it_owns_the_learning_rate() -> None:
    assert Wsd().claims(nn.Module()) == {"knob:lr"}


@pytest.mark.parametrize("wrong", [{"warmup": -0.1}, {"decay": 2.5}, {"final": 2.0}, {"shape": "cosine"}])
def test_settings_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        make(Wsd, wrong, "here")


def test_a_stage_that_is_too_short_is_refused() -> None:
    with pytest.raises(UserError, match=r"warmup = 20.* do not fit into a stage of 10 steps"):
        Wsd(warmup=20).init(nn.Linear(1, 1), Context(steps=10))
    assert Wsd(warmup=0.5, decay=0.5).init(nn.Linear(1, 1), Context(steps=10)) == {}
