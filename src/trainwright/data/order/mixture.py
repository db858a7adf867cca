"""A static mixture: the share of the rows that each domain gives, whatever its size.

With weights w, a row comes from domain d with probability w[d] / sum(w); a small domain with a large weight
is seen more than once. Without a mixture each domain gives as many rows as it has.

Not for shares that change during training: see ``domain_upsampling`` and ``skill_it``.

Errors: no weights, a weight that is negative or not finite, or weights that sum to zero; the data method
refuses domains that the corpus lacks. """
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import field
from typing import ClassVar

from torch import nn

from trainwright.core.context import Context, View
from trainwright.core.errors import UserError
from trainwright.core.method import Command, Controller, Set, State


class Mixture(Controller):
    """Sets the knob ``mixture`` before the first step, of a run that goes on with a
    state too, and owns it."""

    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each domain; domains without one give nothing. None where a law fills them in."""
    example: ClassVar[dict[str, object]] = {"weights": {"prose": 1.0, "code": 3.0}}

    def __post_init__(self) -> None:
        good = all(math.isfinite(w) and w >= 0 for w in self.weights.values())
        if self.weights and (not good or sum(self.weights.values()) <= 0):
            raise ValueError("weights must be numbers of 0 or more that add up to more than 0, not "
                             f"{self.weights}")

    def init(self, model: nn.Module, ctx: Context) -> State:
        if not self.weights:
            raise UserError("mixture: say weights, a number for each domain, or name a law beside it that "
                            "fills them in.")
        return {}

    def claims(self, model: nn.Module) -> set[str]:
        return {"knob:mixture"}

    def tick(self, view: View, state: State) -> Iterable[Command]:
        return [] if view.knobs.get("mixture") == self.weights else [Set("mixture", dict(self.weights))]
