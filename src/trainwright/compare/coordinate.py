"""Tuning one setting after another: each is tried with all others at the best values known by then.

After "Fantastic Pretraining Optimizers and Where to Find Them" (arXiv 2509.02046), which tunes each
optimizer's own settings in this way until none of them improves. It begins with the arm as it is written (for
a setting whose written value is not in its list, with the middle of the list). All values of a setting are
tried at once, the best is kept, and the settings are gone through again until a whole round changes nothing.
What was tried once is not tried again. With ``trials`` an arm ends there, so that all have the same limit;
without, each is tuned until it is done, and arms of more settings take more trials.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from trainwright.compare import tuning
from trainwright.compare.execute import Record, run_all
from trainwright.compare.spec import Arm, Spec

if TYPE_CHECKING:
    from trainwright.compare.arms import ArmRecipes
    from trainwright.compare.compare import Comparison

Axes = dict[str, list[Any]]
"""Of each setting the values to try."""
Try = Callable[[list[tuning.Values]], list[float | None]]
"""From points to what was measured at each; None where a run failed."""


def first(spec: Spec, recipes: ArmRecipes, arm: Arm) -> list[tuning.Values]:
    """The points of a first round in which nothing improves: as many as an arm needs at least."""
    axes = tuning.axes(spec, recipes, arm)
    start = _start(axes, recipes, arm)
    found = [start, *(p for key, values in axes.items() for p in _others(start, key, values))] if axes else []
    return found[:spec.settings.trials]


def search(axes: Axes, start: tuning.Values, attempt: Try, better: str, most: float = math.inf) -> None:
    """Go through the settings until none improves, or ``most`` points are tried. What was tried, and which
    was best, is for ``attempt`` to keep."""
    best, value, tried = start, attempt([start])[0], [start]
    improved = True
    while improved and len(tried) < most:
        improved = False
        for key, values in axes.items():
            points = [p for p in _others(best, key, values) if p not in tried]
            points = points[:int(min(most - len(tried), len(points)))]
            tried += points
            for point, found in zip(points, attempt(points) if points else [], strict=True):
                if found is not None and (value is None or _less(found, value, better)):
                    best, value, improved = point, found, True


def _less(one: float, other: float, better: str) -> bool:
    return one < other if better == "lower" else one > other


def _others(at: tuning.Values, key: str, values: list[Any]) -> Iterator[tuning.Values]:
    """The points that differ in one setting."""
    return (at | {key: value} for value in values if value != at[key])


def _start(axes: Axes, recipes: ArmRecipes, arm: Arm) -> tuning.Values:
    methods = tuning.tunable(recipes.stages(arm, {})[recipes.stage])
    out = {}
    for key, values in axes.items():
        use, name = key.split(".", 1)
        own = tuning.written(methods, use, name)
        out[key] = own if own in values else values[len(values) // 2]
    return out


def tune(c: Comparison, arm: Arm) -> list[list[Record]]:
    """Tune an arm; returns the records of each point, in the order in which they were tried."""
    axes, out = tuning.axes(c.spec, c.recipes, arm), list[list[Record]]()
    if not axes:
        return out

    def attempt(points: list[tuning.Values]) -> list[float | None]:
        units = [c.trials_at(arm, point) for point in points]
        records = run_all([u for trial in units for u in trial], c.store, c.watch, c.jobs, c.engine)
        made = [[records[u.key] for u in trial] for trial in units]
        out.extend(made)
        return [tuning.score(trial, c.spec) for trial in made]

    search(axes, _start(axes, c.recipes, arm), attempt, c.spec.better, c.spec.settings.trials or math.inf)
    return out
