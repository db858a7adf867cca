"""Continued pretraining on new texts: warm up and decay the learning rate again, and replay some old texts.

"Simple and Scalable Strategies to Continually Pre-train Large Language Models" (arXiv 2403.08763). For a
stage that continues from a model, with T steps, W of them warm-up and f = ``final``, the factor of the
peak rate (that of pretraining) at step t = 0, 1 … is
    (t + 1) / W                                           for t < W
    f + (1 - f) (1 + cos(pi (t - W) / (T - W))) / 2       from W on: the same curve again for each new corpus.
``infinite`` does not need the length: with C steps of cooldown, A of annealing and c = ``constant`` it is
    1 + (c - 1) h(x),  x = (t - W) / C                    after W, down to c; h(x) = (1 - cos(pi x)) / 2, or
                                                          (1 - 1 / sqrt(1 + 10 x)) / (1 - 1 / sqrt(11))
    c                                                     until T - A
    c (f / c)^((t - (T - A)) / A)                         then, for a model to be released.
A stage that continues at c sets ``warmup`` and ``cooldown`` to 0 and starts from a model before its
annealing.

On average a share ``replay`` of the rows comes from the domains ``old`` and the rest from ``new`` (each
divided evenly), since the domain of a row is drawn. Replayed rows take the place of new ones, so that the
compute stays the same; ``pack`` must read both groups of domains. The paper replays 5 % under a weak shift
and 25 % under a strong one. This method owns the mixture: to use weights of your own give them to
``mixture``, with ``replay = 0`` here. As in every stage the optimizer starts without its moments.
Do not use it after a stage that did not decay: there is nothing to warm up again.

Errors: settings out of range; parts longer than the stage; replay without its domains.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from torch import nn

from trainwright.core.context import Context, View
from trainwright.core.method import Command, Controller, Set, State
from trainwright.lm.schedules import (
    check_final,
    check_parts,
    check_room,
    progress,
    set_lr,
    steps_of,
    warmup_factor,
)

BEND = 10.0  # of the inverse square root


class ContinualRewarm(Controller):
    """Warms up and decays the learning rate again, and replays a share of old texts."""

    replay: float = 0.05
    """Share of the rows that comes from the old domains."""
    old: tuple[str, ...] = ()
    """Domains of earlier training, to be replayed."""
    new: tuple[str, ...] = ()
    """Domains to learn."""
    schedule: Literal["cosine", "infinite"] = "cosine"
    """One period for this stage, or a curve independent of the length of training."""
    warmup: int | float = 0.01
    """Warm-up: a share of the stage's steps (0.2, 1.0) or a number of steps (20)."""
    final: float = 0.1
    """Factor of the peak rate at the end, reached one step after the last."""
    constant: float = 0.5
    """In the infinite schedule: factor of the peak rate after the cooldown."""
    cooldown: int | float = 0.3
    """In the infinite schedule: steps from the peak to the constant rate, as a share or a number."""
    shape: Literal["cosine", "inverse_sqrt"] = "cosine"
    """In the infinite schedule: the curve of the cooldown."""
    anneal: int | float = 0.0
    """In the infinite schedule: steps of the fall at the end, as a share or a number."""
    example: ClassVar[dict[str, Any]] = {
        "replay": 0.25,
        "old": ["prose"],
        "new": ["code", "chat"],
        "warmup": 2,
    }
    off: ClassVar[dict[str, Any] | None] = {"replay": 0.0, "old": (), "new": (), "warmup": 0.0, "final": 1.0}

    def __post_init__(self) -> None:
        check_parts(warmup=self.warmup, cooldown=self.cooldown, anneal=self.anneal)
        check_final(self.final)
        if not 0 <= self.replay < 1:
            raise ValueError(f"replay must be a share of the rows, at least 0 and below 1, not {self.replay}")
        if bool(self.replay) != bool(self.old and self.new) or (not self.replay and (self.old or self.new)):
            raise ValueError(
                "replay is a share for the domains old and new: name both, or set replay = 0 and name none"
            )
        if set(self.old) & set(self.new):
            raise ValueError(f"old and new both name {', '.join(sorted(set(self.old) & set(self.new)))}")
        if not 0 < self.constant <= 1:
            raise ValueError(
                f"constant must be a share of the peak learning rate, above 0, not {self.constant}"
            )
        if self.anneal and not 0 < self.final <= self.constant:
            raise ValueError(
                "final must be above 0 and at most constant: the fall of the infinite schedule is exponential"
            )

    def claims(self, model: nn.Module) -> set[str]:
        return {"knob:lr", "knob:mixture"} if self.replay else {"knob:lr"}

    def init(self, model: nn.Module, ctx: Context) -> State:
        infinite = {"cooldown": self.cooldown, "anneal": self.anneal} if self.schedule == "infinite" else {}
        check_room(self.name, ctx, warmup=self.warmup, **infinite)
        return {}

    def tick(self, view: View, state: State) -> Iterable[Command]:
        set_already = not self.replay or view.knobs.get("mixture") == self.weights()
        mixture = [] if set_already else [Set("mixture", self.weights())]
        return [*mixture, *set_lr(view, self.factor(view.step, view.steps))]

    def weights(self) -> dict[str, float]:
        """The share of each domain."""
        parts = ((self.old, self.replay), (self.new, 1 - self.replay))
        return {name: share / len(names) for names, share in parts for name in names}

    def factor(self, step: int, steps: int) -> float:
        """The factor of the peak learning rate."""
        warmup = steps_of(self.warmup, steps)
        if step < warmup:
            return warmup_factor(step, warmup)
        if self.schedule == "cosine":
            return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress(step, warmup, steps))) / 2
        cooldown, anneal = steps_of(self.cooldown, steps), steps_of(self.anneal, steps)
        if anneal and step >= steps - anneal:
            return self.constant * (self.final / self.constant) ** progress(step, steps - anneal, steps)
        fallen = progress(step, warmup, warmup + cooldown) if cooldown else 1.0
        return 1 + (self.constant - 1) * self.bent(fallen)

    def bent(self, x: float) -> float:
        """Progress of the cooldown after a share ``x`` of its steps."""
        if self.shape == "cosine":
            return (1 - math.cos(math.pi * x)) / 2
        return (1 - 1 / math.sqrt(1 + BEND * x)) / (1 - 1 / math.sqrt(1 + BEND))
