"""Stops a stage whose loss has jumped and stays high, so that a broken run does not spend its whole budget.

The rule is the robust outlier test of Leys et al. ("Detecting outliers: Do not use standard deviation
around the mean, use absolute deviation around the median", J. Exp. Soc. Psychol. 2013): with m the median
of the last ``window`` losses and s = 1.4826 times their median absolute deviation from m (the standard
deviation of normal losses), a step spikes if
    loss > m + deviations * max(s, 0.001 |m|),
and ``patience`` spiking steps in a row, or a single loss that is not finite, stop the stage as failed; its
last good checkpoint is kept. A spiking loss does not enter the window, or a plateau after the jump would
become the new normal.
Do not use it in a stage whose loss may rightly jump: a changing mixture, an objective switched on midway.

Errors: settings out of range. State: ``shared``: the window and the number of spiking steps in a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median
from typing import Any, ClassVar

from torch import nn

from trainwright.core.context import Context, View
from trainwright.core.method import Command, Controller, State, Stop

NORMAL = 1.4826  # the standard deviation of a normal variable over its median absolute deviation
FLOOR = 1e-3  # a window of nearly equal losses would call any rise a spike


class LossSpikeStop(Controller):
    """Stops a stage whose loss has jumped and stays high."""

    window: int = 100
    """Losses for the median and the deviation; it starts to watch once it has a quarter of them."""
    deviations: float = 8.0
    """How many robust standard deviations above the median count as a spike."""
    patience: int = 10
    """Number of spiking steps in a row that stops the stage."""
    example: ClassVar[dict[str, Any]] = {"window": 8, "patience": 2}
    off: ClassVar[dict[str, Any] | None] = {}

    def __post_init__(self) -> None:
        if self.window < 4 or self.patience < 1 or self.deviations <= 0:
            raise ValueError("window must be at least 4, patience at least 1 and deviations above 0")

    def init(self, model: nn.Module, ctx: Context) -> State:
        return {"shared": {"losses": [], "spikes": 0}}

    def tick(self, view: View, state: State) -> Iterable[Command]:
        if "loss" not in view.notes:
            return []
        loss, seen = view.notes["loss"], state["shared"]
        if not math.isfinite(loss):
            return [Stop(f"the loss is {loss}", failed=True)]
        limit = self.limit(seen["losses"])
        if loss <= limit:
            seen["losses"], seen["spikes"] = [*seen["losses"], loss][-self.window :], 0
            return []
        seen["spikes"] += 1
        if seen["spikes"] < self.patience:
            return []
        return [
            Stop(
                f"the loss ({loss:.4g}) is above {limit:.4g} for {seen['spikes']} steps in a row (median of "
                f"the last {len(seen['losses'])}: {median(seen['losses']):.4g})",
                failed=True,
            )
        ]

    def limit(self, losses: list[float]) -> float:
        """The highest loss that is no spike."""
        if len(losses) < max(2, self.window // 4):
            return math.inf
        middle = median(losses)
        spread = NORMAL * median(abs(x - middle) for x in losses)
        return middle + self.deviations * max(spread, FLOOR * abs(middle))
