"""Parts of a stage as shares and numbers of steps, the warm-up and the progress of a decay, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainwright.core import registry
from trainwright.core.context import Context, View
from trainwright.core.errors import UserError
from trainwright.core.method import Set
from trainwright.core.settings import hints_of
from trainwright.life.jobs import table
from trainwright.lm.schedules import (
    check_final,
    check_parts,
    check_room,
    progress,
    set_lr,
    steps_of,
    warmup_factor,
)


def test_fractions_are_shares_and_whole_numbers_are_steps() -> None:
    assert [steps_of(part, 200) for part in (0, 0.0, 0.05, 0.999)] == [0, 0, 10, 199]
    assert [steps_of(part, 200) for part in (1.0, 1, 7, 7.0)] == [200, 1, 7, 7], "1.0 is all of it, 1 a step"
    assert steps_of(0.29, 100) == 29, "0.29 * 100 is a little less than 29 in binary"


@pytest.mark.parametrize("part", [-0.1, 1.5, -1])
def test_what_is_neither_a_share_nor_a_number_of_steps(part: float) -> None:
    check_parts(warmup=0.3, decay=12)
    with pytest.raises(ValueError, match=f"decay must be .* not {part}"):
        check_parts(warmup=0.3, decay=part)


def test_the_final_factor_is_a_share() -> None:
    check_final(0.0)
    check_final(1.0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        check_final(1.1)


@pytest.mark.parametrize("name", ["domain_upsampling", "wsd", "linear", "cosine", "power_scheduler", "granet",
                                  "increlora", "sst", "meco", "skill_it", "loss_reweighting", "constant",
                                  "continual_rewarm"])
def test_every_part_of_a_stage_tells_a_share_from_a_step(name: str) -> None:
    """Through a recipe's table, and back to it."""
    cls = registry.find(name)
    parts = [f for f, kind in hints_of(cls).items() if kind == int | float]
    assert parts, "no setting of it is a part of a stage"
    for part in parts:
        for value in (1, 1.0):
            made = registry.create({"use": name, **cls.example, part: value}, Path(), "here")
            assert type(getattr(made, part)) is type(value) and type(table(made, name)[part]) is type(value)


def test_parts_must_fit_into_the_stage() -> None:
    check_room("wsd", Context(steps=10), warmup=4, decay=0.6)
    said = r"wsd: warmup = 4 \+ decay = 7 steps do not fit into a stage of 10 steps"
    with pytest.raises(UserError, match=said):
        check_room("wsd", Context(steps=10), warmup=4, decay=7)
    check_room("wsd", Context(steps=0), warmup=4)  # nothing is trained


def test_the_warm_up_reaches_one_at_its_last_step_and_is_never_zero() -> None:
    assert [warmup_factor(t, 4) for t in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warmup_factor(0, 0) == 1.0


def test_progress_is_linear_and_stays_between_its_ends() -> None:
    assert [progress(t, 2, 6) for t in (0, 2, 3, 6, 9)] == [0.0, 0.0, 0.25, 1.0, 1.0]


def test_the_knob_is_set_only_where_it_changes() -> None:
    view = View(step=3, steps=10, notes={}, knobs={"lr": 0.5})
    assert set_lr(view, 0.5) == [] and set_lr(view, 0.25) == [Set("lr", 0.25)]
