"""Constant learning rate after a linear warm-up.

The plain baseline among schedules: with W steps of warm-up the factor of the peak rate at step t = 0, 1 …
is
    min(1, (t + 1) / W).
Use a schedule that decays where the last digit of the loss counts: a rate that stays high leaves the
weights wandering around the minimum (Defazio et al., "Optimal Linear Decay Learning Rate Schedules", arXiv
2310.07831).

Errors: a warm-up that is neither a share nor a number of steps, or longer than the stage.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from torch import nn

from trainwright.core.context import Context, View
from trainwright.core.method import Command, Controller, State
from trainwright.lm.schedules import check_parts, check_room, set_lr, steps_of, warmup_factor


class Constant(Controller):
    """Constant learning rate after a linear warm-up."""

    warmup: int | float = 0.0
    """Warm-up: a share of the stage's steps (0.2, 1.0) or a number of steps (20)."""
    example: ClassVar[dict[str, Any]] = {"warmup": 2}
    off: ClassVar[dict[str, Any] | None] = {"warmup": 0.0}

    def __post_init__(self) -> None:
        check_parts(warmup=self.warmup)

    def claims(self, model: nn.Module) -> set[str]:
        return {"knob:lr"}

    def init(self, model: nn.Module, ctx: Context) -> State:
        check_room(self.name, ctx, warmup=self.warmup)
        return {}

    def tick(self, view: View, state: State) -> Iterable[Command]:
        return set_lr(view, warmup_factor(view.step, steps_of(self.warmup, view.steps)))
