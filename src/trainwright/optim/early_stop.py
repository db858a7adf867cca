"""Stops a stage once a number of its evaluations has not become better for some time.

"Early Stopping - But When?" (Prechelt, in Neural Networks: Tricks of the Trade, 1998), the criterion UP with
the best value so far in place of the last one. With v_1, v_2 … what was measured on the way, each
``eval_every`` steps, v_k is an improvement where it is better than the best one before it by more than
``least``, and the stage ends after ``patience`` measurements in a row that are none.

The weights that are left are the last ones, by then worse than the best: ``keep = "best:METRIC"`` in the
stage keeps those. Do not use it with a schedule that decays to the end of the stage: the last and best part
of that never comes. What decides must not be what is reported: measure the split ``tune`` on the way
(``{ use = "held_out", split = "tune" }``), and ``test`` in an ``evaluate`` stage.

Errors: a metric whose name does not say which way is better, without ``better``; one that no evaluator of the
stage makes; a stage that measures nothing on the way. State: ``shared``: the best value and the misses since.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from torch import nn

from trainwright.core.context import Context, View
from trainwright.core.errors import UserError, suggest
from trainwright.core.method import Command, Controller, State, Stop
from trainwright.core.metrics import Metric, direction, improves
from trainwright.core.settings import Count, Rate
from trainwright.core.shown import brief


class EarlyStop(Controller):
    """Stops a stage whose evaluations no longer become better."""

    metric: Metric
    """Number of the evaluations on the way, such as loss/code."""
    patience: Count = 3
    """Measurements in a row without an improvement that end the stage."""
    least: Rate = 0.0
    """By how much the best value must be beaten to count as an improvement."""
    better: Literal["lower", "higher"] | None = None
    """Which way the metric is better; default: what its name says."""
    example: ClassVar[dict[str, Any]] = {"metric": "loss/code", "patience": 1000}
    beside: ClassVar[tuple[dict[str, Any], ...]] = ({"use": "held_out"},)
    off: ClassVar[dict[str, Any] | None] = {}

    def __post_init__(self) -> None:
        if self.way is None:
            raise ValueError(f"metric: say better = \"lower\" or \"higher\": the name {brief(self.metric)} "
                             "does not say which it is")

    @property
    def way(self) -> Literal["lower", "higher"] | None:
        """Which way the metric is better."""
        return self.better or direction(self.metric)

    def init(self, model: nn.Module, ctx: Context) -> State:
        return {"shared": {"best": None, "misses": 0}}

    def tick(self, view: View, state: State) -> Iterable[Command]:
        measured = {n.removeprefix("eval/"): x for n, x in view.notes.items() if n.startswith("eval/")}
        if not measured:
            return []
        if self.metric not in measured:
            raise UserError(f"early_stop: the evaluations make no number {self.metric!r}"
                            f"{suggest(self.metric, measured)}.")
        value, seen = measured[self.metric], state["shared"]
        assert self.way is not None
        first = seen["best"] is None
        if math.isfinite(value) and (first or improves(value, seen["best"], self.way, self.least)):
            seen["best"], seen["misses"] = value, 0
            return []
        seen["misses"] += 1
        if seen["misses"] < self.patience:
            return []
        best = "never a number" if first else f"best {seen['best']:.4g}"
        times = "1 measurement" if seen["misses"] == 1 else f"{seen['misses']} measurements"
        return [Stop(f"{self.metric} has not become better for {times} ({best}, now {value:.4g})")]
