"""Cosine decay of the learning rate after a linear warm-up.

"SGDR: Stochastic Gradient Descent with Warm Restarts" (arXiv 1608.03983): one period, no restart. With T
steps in all, W of them warm-up, and f = ``final``, the factor of the peak rate at step t = 0, 1 … is
    (t + 1) / W                                              for t < W
    f + (1 - f) (1 + cos(pi (t - W) / (T - W))) / 2          from W on.
f would be reached at step T, one after the last.
Do not use it for a run that may be continued or cut short: the curve depends on T from its first step (see
``wsd``).

Errors: a warm-up that is neither a share nor a number of steps, or longer than the stage; ``final`` outside
0 … 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar

from torch import nn

from trainwright.core.context import Context, View
from trainwright.core.method import Command, Controller, State
from trainwright.lm.schedules import (
    check_final,
    check_parts,
    check_room,
    progress,
    set_lr,
    steps_of,
    warmup_factor,
)


class Cosine(Controller):
    """Cosine decay of the learning rate after a linear warm-up."""

    warmup: int | float = 0.05
    """Warm-up: a share of the stage's steps (0.2, 1.0) or a number of steps (20)."""
    final: float = 0.1
    """Factor of the peak rate at the end, reached one step after the last."""
    example: ClassVar[dict[str, Any]] = {"warmup": 2}
    off: ClassVar[dict[str, Any] | None] = {"warmup": 0.0, "final": 1.0}

    def __post_init__(self) -> None:
        check_parts(warmup=self.warmup)
        check_final(self.final)

    def claims(self, model: nn.Module) -> set[str]:
        return {"knob:lr"}

    def init(self, model: nn.Module, ctx: Context) -> State:
        check_room(self.name, ctx, warmup=self.warmup)
        return {}

    def tick(self, view: View, state: State) -> Iterable[Command]:
        warmup = steps_of(self.warmup, view.steps)
        if view.step < warmup:
            return set_lr(view, warmup_factor(view.step, warmup))
        fallen = (1 - math.cos(math.pi * progress(view.step, warmup, view.steps))) / 2
        return set_lr(view, 1 - (1 - self.final) * fallen)
