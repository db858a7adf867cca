"""Schedules of the learning rate: parts of a stage, the warm-up, the progress of a decay, and the command
that sets the rate.

A schedule is a ``Controller`` that claims the knob ``lr``, the factor by which every optimizer's peak rate
is multiplied:

    def claims(self, model):
        return {"knob:lr"}

    def init(self, model, ctx):
        check_room(self.name, ctx, warmup=self.warmup)
        return {}

    def tick(self, view, state):
        return set_lr(view, warmup_factor(view.step, steps_of(self.warmup, view.steps)))

A *part* of a stage (its warm-up, its decay) is a share of the stage's steps if it is written as a fraction,
and a number of steps if it is a whole number, as in the ``snapshots`` of a stage: ``warmup = 0.05`` is a
twentieth of the stage, ``warmup = 1.0`` the whole of it, ``warmup = 1`` a single step. Such a setting is of
the type ``int | float``. Steps count from 0; a factor is the one that the step to come is taken with. Other
methods that begin, end or recur at some point of a stage use the same parts.
"""

from __future__ import annotations

import math

from trainwright.core.context import Context, View
from trainwright.core.errors import UserError
from trainwright.core.method import Set


def steps_of(part: int | float, steps: int) -> int:
    """How many steps a part is, in a stage of ``steps``; a share is rounded down."""
    return int(part) if isinstance(part, int) or part > 1 else math.floor(part * steps + 1e-9)


def check_parts(**parts: int | float) -> None:
    """Check parts by the names of their settings, in ``__post_init__``.

    Raises:
        ValueError: a part is negative, or above 1 and not a whole number.
    """
    for name, part in parts.items():
        if part < 0 or (part > 1 and part != int(part)):
            raise ValueError(
                f"{name} must be a share of the steps (up to 1.0) or a whole number of steps, not {part}"
            )


def check_final(final: float) -> None:
    """Check the factor at which a schedule ends, in ``__post_init__``.

    Raises:
        ValueError: it is not between 0 and 1.
    """
    if not 0 <= final <= 1:
        raise ValueError(f"final must be a share of the peak learning rate, between 0 and 1, not {final}")


def check_room(who: str, ctx: Context, **parts: int | float) -> None:
    """Check, in ``init``, that the parts fit into the stage: a schedule cut short would never reach its
    peak, unnoticed.

    Raises:
        UserError: together the parts are longer than the stage.
    """
    numbers = {name: steps_of(part, ctx.steps) for name, part in parts.items()}
    if ctx.steps and sum(numbers.values()) > ctx.steps:
        told = " + ".join(f"{name} = {n}" for name, n in numbers.items())
        raise UserError(
            f"{who}: {told} steps do not fit into a stage of {ctx.steps} steps; a share such as 0.05 always "
            "fits."
        )


def warmup_factor(step: int, warmup: int) -> float:
    """The linear warm-up, (step + 1) / warmup, and 1 after it. Never 0, since a step at a rate of zero is
    wasted."""
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def progress(step: int, start: int, end: int) -> float:
    """How far ``step`` has come from ``start`` (0) to ``end`` (1)."""
    return min(1.0, max(0.0, (step - start) / max(1, end - start)))


def set_lr(view: View, factor: float) -> list[Set]:
    """The command that sets the knob ``lr``, or none if it has that value already."""
    return [] if view.knobs.get("lr") == factor else [Set("lr", factor)]
