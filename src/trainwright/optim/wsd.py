"""WSD: warm-up, a stable learning rate, then a short decay; only the decay depends on the length of the run.

"Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations" (arXiv 2405.18392), which found
the square-root shape best; the idea and the name are MiniCPM's (arXiv 2404.06395). With T steps in all, W
of warm-up, D of decay and f = ``final``, the factor of the peak rate at step t = 0, 1 … is
    (t + 1) / W                              for t < W
    1                                        for W <= t < T - D
    1 - (1 - f) g((t - (T - D)) / D)         from T - D on, with g(x) = sqrt(x) or x.
f would be reached at step T, one after the last. Before the decay the loss looks worse than under
``cosine`` at the same step: compare the ends.

Errors: a part that is neither a share nor a number of steps; parts longer than the stage; ``final`` outside
0 … 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

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


class Wsd(Controller):
    """Warm-up, a stable learning rate, then a short decay."""

    warmup: int | float = 0.05
    """Warm-up: a share of the stage's steps (0.2, 1.0) or a number of steps (20)."""
    decay: int | float = 0.2
    """Decay at the end: a share of the stage's steps (0.2, 1.0) or a number of steps (20)."""
    final: float = 0.0
    """Factor of the peak rate at the end, reached one step after the last."""
    shape: Literal["sqrt", "linear"] = "sqrt"
    """The decay: one minus the square root of its progress, or a straight line."""
    example: ClassVar[dict[str, Any]] = {"warmup": 2, "decay": 0.5}
    off: ClassVar[dict[str, Any] | None] = {"warmup": 0.0, "decay": 0.0}

    def __post_init__(self) -> None:
        check_parts(warmup=self.warmup, decay=self.decay)
        check_final(self.final)

    def claims(self, model: nn.Module) -> set[str]:
        return {"knob:lr"}

    def init(self, model: nn.Module, ctx: Context) -> State:
        check_room(self.name, ctx, warmup=self.warmup, decay=self.decay)
        return {}

    def tick(self, view: View, state: State) -> Iterable[Command]:
        warmup, decay = steps_of(self.warmup, view.steps), steps_of(self.decay, view.steps)
        if view.step < warmup:
            return set_lr(view, warmup_factor(view.step, warmup))
        fallen = progress(view.step, view.steps - decay, view.steps) if decay else 0.0
        return set_lr(view, 1 - (1 - self.final) * (math.sqrt(fallen) if self.shape == "sqrt" else fallen))
