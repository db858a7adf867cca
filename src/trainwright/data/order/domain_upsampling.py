"""Domain upsampling: the last part of training has a mixture with larger shares of small, valuable domains.

"Does your data spark joy? Performance gains from domain upsampling at the end of training" (arXiv
2406.03476). Of T steps, with D = ``duration``, the shares of rows are

    base         for the first T - D steps (without ``base``: each domain gives as many rows as it has)
    weights      for the last D

and nothing else changes: the learning rate continues as it would and should anneal over those steps
(``cosine``, ``linear``, ``wsd``); to warm it up again would be continued pretraining. The paper tried a D
of 5 to 30 % of a 7 B model's training and found 10 to 20 % the best trade-off between general modelling and
the target domains.

To measure what a data set is worth, leave it out of the last mixture and run the last part again: the others
share its rows, since weights are normalized. One run of the base mixture serves for all of them, as each goes
on with a state that it kept, with the optimizer and the place in the data:

    [[stage]]
    name = "base"
    snapshots = [0.8]
    methods = [{ use = "mixture", weights = { web = 0.9, code = 0.1 } }, …]

    [[stage]]
    name = "with_code"
    from = { state = "base@0.8", data = "corpus" }
    methods = [{ use = "mixture", weights = { web = 0.5, code = 0.5 } }, …]

With the same length (``steps``), schedule and seed, ``with_code`` ends with the very weights of one run with
``domain_upsampling`` and ``duration = 0.2``; ``base`` itself is the run to compare with.

Not without held-out documents of a small domain: with a large weight it is seen many times.

Errors: a weight that is negative or not finite, or weights that sum to zero; a duration that is neither a
share nor a number of steps, or longer than the stage; the data method refuses domains that the corpus
lacks. Owns the knob ``mixture``. """
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import field
from typing import Any, ClassVar

from torch import nn

from trainwright.core.context import Context, View
from trainwright.core.method import Command, Controller, Set, State
from trainwright.lm.schedules import check_parts, check_room, steps_of


class DomainUpsampling(Controller):
    """Sets the knob ``mixture`` to one mixture, and for the last steps to another."""

    weights: dict[str, float]
    """Weight of each domain in the last part; domains without one give nothing."""
    base: dict[str, float] = field(default_factory=dict)
    """Weight of each domain before; none: as many rows as each has."""
    duration: int | float = 0.2
    """The last part: a share of the stage's steps (0.2, 1.0) or a number of steps (20)."""
    example: ClassVar[dict[str, Any]] = {"weights": {"prose": 1.0, "code": 3.0}, "base": {"prose": 1.0},
                                         "duration": 7}

    def __post_init__(self) -> None:
        for name, weights in (("weights", self.weights), ("base", self.base)):
            good = all(math.isfinite(w) and w >= 0 for w in weights.values())
            if not good or (sum(weights.values()) <= 0 and (weights or name == "weights")):
                raise ValueError(f"{name} must be numbers of 0 or more that add up to more than 0, not "
                                 f"{weights}")
        check_parts(duration=self.duration)

    def claims(self, model: nn.Module) -> set[str]:
        return {"knob:mixture"}

    def init(self, model: nn.Module, ctx: Context) -> State:
        check_room(self.name, ctx, duration=self.duration)
        return {}

    def tick(self, view: View, state: State) -> Iterable[Command]:
        last = view.step >= view.steps - steps_of(self.duration, view.steps)
        wanted = dict(self.weights if last else self.base)
        if wanted and view.knobs.get("mixture") != wanted:
            yield Set("mixture", wanted)
