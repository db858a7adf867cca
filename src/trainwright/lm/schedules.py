"""What learning-rate schedules share: shares or numbers of steps, the warm-up, the fall, the command."""
from __future__ import annotations

import math

from trainwright.core.context import Context, View
from trainwright.core.errors import UserError
from trainwright.core.method import Set


def steps_of(part: float, steps: int) -> int:
    """A share of all ``steps`` where ``part`` is below 1, else ``part`` itself: a number of steps."""
    return math.floor(part * steps + 1e-9) if part < 1 else int(part)


def check(**parts: float) -> None:
    """Refuse what is neither a share nor a number of steps.

    Raises:
        ValueError: a part below 0, or a broken number above 1.
    """
    for name, part in parts.items():
        if part < 0 or (part > 1 and part != int(part)):
            raise ValueError(f"{name} must be a share of the steps (below 1) or a whole number of steps, not {part}")


def check_final(final: float) -> None:
    if not 0 <= final <= 1:
        raise ValueError(f"final must be a share of the peak learning rate, between 0 and 1, not {final}")


def check_room(who: str, ctx: Context, **parts: float) -> None:
    """Refuse a schedule that the stage is too short for: it would never reach its peak, and nobody would see it.

    Raises:
        UserError: the parts are together longer than the stage.
    """
    numbers = {name: steps_of(part, ctx.steps) for name, part in parts.items()}
    if ctx.steps and sum(numbers.values()) > ctx.steps:
        told = " + ".join(f"{name} = {n}" for name, n in numbers.items())
        raise UserError(f"{who}: {told} steps do not fit into a stage of {ctx.steps} steps; a share such as 0.05 always fits.")


def rising(step: int, warmup: int) -> float:
    """The warm-up: in equal parts to 1 at its last step. Never 0, since a step with a rate of zero is a wasted one."""
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def progress(step: int, start: int, end: int) -> float:
    """How far ``step`` has come from ``start`` (0) to ``end`` (1)."""
    return min(1.0, max(0.0, (step - start) / max(1, end - start)))


def set_lr(view: View, factor: float) -> list[Set]:
    """The command that sets the knob ``lr``, where it is not set so already."""
    return [] if view.knobs.get("lr") == factor else [Set("lr", factor)]
