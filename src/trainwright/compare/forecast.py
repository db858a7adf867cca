"""What a comparison will cost, before it runs: arms x seeds x trials, time and memory predicted, what is shared."""
from __future__ import annotations

from dataclasses import dataclass

from trainwright.compare.compare import Comparison
from trainwright.core.errors import UserError
from trainwright.life.jobs import jobs
from trainwright.planning.plan import plan
from trainwright.planning.probe import Probes


@dataclass(frozen=True)
class ArmForecast:
    """One arm: its runs, and what one of them is expected to take."""

    name: str
    runs: int
    trials: int
    seconds: float | None
    """Of one run, training alone."""
    memory_bytes: float | None
    steps: float | None


@dataclass(frozen=True)
class Forecast:
    """The whole comparison; ``shared`` are stages that run once, with ``True`` where the store has them."""

    arms: list[ArmForecast]
    shared: list[tuple[str, bool]]
    seconds: float | None
    memory_bytes: float | None


def forecast(c: Comparison) -> Forecast:
    """Check everything and predict; nothing is run but a short calibration of each arm.

    Raises:
        UserError: whatever ``Comparison.check`` finds.
    """
    c.check()
    s = c.spec.settings
    arms, before, probes = [], 0.0, Probes()                       # what the arms come from is tried once
    for i, arm in enumerate(c.spec.arms):
        figures: dict[str, float] = {}
        if c.trains:
            planned = plan(c.variants.bare(arm, c.far(None)), c.store, probes=probes)
            figures = planned.stages[-1].figures
            if not i:
                before = sum(p.figures.get("seconds", 0.0) for p in planned.stages[:-1] if not p.cached)
        trials = len(c.tried[arm.name]) * s.tune_seeds
        arms.append(_arm(c, arm.name, figures, trials))
    recipe = c.variants.common(c.spec.arms[0])
    shared = [(j.stage.name, c.store.find(j.stage.name, j.key) is not None) for j in jobs(recipe, c.store)] if recipe else []
    known = [a for a in arms if a.seconds is not None]
    total = before + sum((a.runs + a.trials) * (a.seconds or 0.0) for a in known) / c.jobs if known else None
    memory = max((a.memory_bytes for a in arms if a.memory_bytes), default=None)
    return Forecast(arms, shared, total, memory)


def _arm(c: Comparison, name: str, figures: dict[str, float], trials: int) -> ArmForecast:
    """An arm's figures, scaled to the budget where that is in FLOPs or seconds: what was planned has the length of the recipe."""
    steps, seconds = figures.get("steps"), figures.get("seconds")
    amount = c.spec.amount
    if amount is not None and steps and seconds:
        if c.spec.currency == "seconds":
            steps, seconds = steps * amount / seconds, amount
        elif c.spec.currency == "flops" and figures.get("flops"):
            share = amount / figures["flops"]
            steps, seconds = steps * share, seconds * share
        if steps < 1:
            raise UserError(f"arm {name!r}: the budget of {amount:g} {c.spec.currency} is too small for one step.")
    return ArmForecast(name, c.spec.settings.seeds, trials, seconds, figures.get("memory_bytes"), steps)
