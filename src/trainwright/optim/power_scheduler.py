"""Power scheduler: a learning rate that is a power of the tokens seen, for any batch size and run length.

"Power Scheduler: A Batch Size and Token Number Agnostic Learning Rate Scheduler" (arXiv 2408.13359). Left
out: the paper's comparison over architectures (mixtures of experts), whose widths ``mup`` does not know. With
n the tokens trained on before a step, B the tokens of a step divided by those of a sequence (``sequence``;
4096 in the paper), and lr the optimizer's,
    power(n) = min(lr, B a n^b),
    lr(n) = (t + 1) / W power(n_W)     in the W steps of warm-up, which end at n_W tokens,
            power(n)                   until D steps before the end, at n_D tokens,
            f(x) power(n_D)            then, x from 0 to 1:   f(x) = (e^(1 - x) - 1) / (e - 1).
The paper says of f only that it decays exponentially to 0; this form is that of the authors' later code. a
= 4 and b = -0.51 come from models of 12 to 121 million parameters on 2 to 256 billion tokens. Where n^b
does not fall below lr the rate is constant. To fit a and b anew, find the best rate under ``wsd`` for
several lengths T and batches B and plot log(rate / B) against log T: b is the slope, log a the intercept.
n counts the tokens seen so far; the planned total in its place would be a different method.

The method includes muP (``mup``), under which lr is that of a model 256 wide and holds for every width: a
matrix of width d has the rate lr / (d / 256). The paper's stage is
    { use = "adamw", lr = 0.02, weight_decay = 0.1 },
    { use = "mup", base = 256, embedding = 12.0, residual = 0.22 },
    { use = "power_scheduler" },
lr is the largest rate among the optimizers; all of them are scaled by the same factor. Without ``mup`` choose
lr to suit the model, as usual: 0.02 is far too high for a wide one.

Errors: settings out of range; parts longer than the stage; rows without a fixed number of tokens.
State: ``shared``: tokens of a step, and lr.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar

from torch import nn

from trainwright.core.context import Context, View
from trainwright.core.errors import UserError
from trainwright.core.method import Command, Controller, State
from trainwright.lm.schedules import check_parts, check_room, progress, set_lr, steps_of, warmup_factor


class PowerScheduler(Controller):
    """A learning rate that falls with a power of the tokens seen."""

    a: float = 4.0
    """Learning rate for a batch of one sequence after one token."""
    b: float = -0.51
    """Exponent of the tokens seen."""
    warmup: int | float = 0.05
    """Warm-up: a share of the stage's steps (0.2, 1.0) or a number of steps (20)."""
    decay: int | float = 0.1
    """Decay at the end: a share of the stage's steps (0.2, 1.0) or a number of steps (20)."""
    sequence: int = 4096
    """Tokens of one of the sequences in which the batch is counted."""
    before: float = 0.0
    """Tokens that the model has been trained on before this stage."""
    example: ClassVar[dict[str, Any]] = {"a": 1e-3, "warmup": 2, "decay": 0.3}
    off: ClassVar[dict[str, Any] | None] = {"a": 1e12, "warmup": 0.0, "decay": 0.0}

    def __post_init__(self) -> None:
        check_parts(warmup=self.warmup, decay=self.decay)
        if self.a <= 0 or self.b > 0 or self.sequence < 1 or self.before < 0:
            raise ValueError(
                f"a must be above 0, b at most 0, sequence 1 or more, and before 0 or more: not {self.a}, "
                f"{self.b}, {self.sequence} and {self.before}"
            )

    def claims(self, model: nn.Module) -> set[str]:
        return {"knob:lr"}

    def init(self, model: nn.Module, ctx: Context) -> State:
        check_room(self.name, ctx, warmup=self.warmup, decay=self.decay)
        if not ctx.batch_rows * ctx.row_tokens:
            raise UserError(
                "power_scheduler: it counts tokens, and the stage's data has no fixed number of them in a "
                "step; take another schedule, such as wsd."
            )
        return {"shared": {"step_tokens": ctx.batch_rows * ctx.row_tokens, "lr": ctx.peak_lr}}

    def tick(self, view: View, state: State) -> Iterable[Command]:
        warmup, decay = steps_of(self.warmup, view.steps), steps_of(self.decay, view.steps)
        shared, last = state["shared"], view.steps - decay
        if view.step < warmup:
            return set_lr(view, warmup_factor(view.step, warmup) * self.power(warmup, shared))
        fallen = progress(view.step, last, view.steps) if decay else 0.0
        return set_lr(view, falling(fallen) * self.power(min(view.step, last), shared))

    def power(self, step: int, shared: dict[str, Any]) -> float:
        """The factor of lr before this step."""
        seen = self.before + step * shared["step_tokens"]
        if not seen or not shared["lr"]:
            return 1.0
        return min(1.0, float(shared["step_tokens"] / self.sequence * self.a * seen**self.b / shared["lr"]))


def falling(x: float) -> float:
    """From 1 to 0 as x goes from 0 to 1."""
    return math.expm1(1 - x) / math.expm1(1)
