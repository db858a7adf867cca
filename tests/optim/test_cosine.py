"""Cosine decay: the corners of its curve."""

from __future__ import annotations

import math

import pytest
from torch import nn

from trainwright.core.context import Context, View
from trainwright.core.errors import UserError
from trainwright.core.method import Set
from trainwright.core.settings import make
from trainwright.optim.cosine import Cosine


def factors(method: Cosine, steps: int) -> list[float]:
    """The factor of the learning rate at each step of a run."""
    knob, seen = 1.0, []
    for step in range(steps):
        for command in method.tick(View(step, steps, {}, {"lr": knob}), {}):
            assert isinstance(command, Set) and command.knob == "lr"
            knob = command.value
        seen.append(knob)
    return seen


def test_the_corners_by_hand() -> None:
    """2 steps up, then 4 down: whole after the warm-up, half-way down in the middle, cos(3/4 pi) at the
    last."""
    seen = factors(Cosine(warmup=2, final=0.0), 6)
    assert seen == pytest.approx([0.5, 1.0, 1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])


def test_it_falls_towards_final() -> None:
    half = factors(Cosine(warmup=0, final=0.1), 100)[50]
    assert half == pytest.approx(0.55)
    assert [
        c.value for c in Cosine(warmup=0, final=0.1).tick(View(100, 100, {}, {"lr": 1.0}), {})
    ] == pytest.approx([0.1])


def test_no_step_is_wasted() -> None:
    assert min(factors(Cosine(warmup=0.1, final=0.0), 50)) > 0


def test_it_owns_the_learning_rate() -> None:
    assert Cosine().claims(nn.Module()) == {"knob:lr"}


@pytest.mark.parametrize("wrong", [{"warmup": -0.1}, {"warmup": 2.5}, {"final": -0.1}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        make(Cosine, wrong, "here")


def test_a_stage_that_is_too_short_is_refused() -> None:
    with pytest.raises(UserError, match=r"warmup = 20.* do not fit into a stage of 10 steps"):
        Cosine(warmup=20).init(nn.Linear(1, 1), Context(steps=10))
    assert Cosine(warmup=0.5).init(nn.Linear(1, 1), Context(steps=10)) == {}
