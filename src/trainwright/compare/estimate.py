"""What a comparison will cost, estimated before it runs: arms x seeds x trials, time, memory."""
from __future__ import annotations

from dataclasses import dataclass

from trainwright.compare.compare import Comparison
from trainwright.compare.execute import at_a_time
from trainwright.core.errors import UserError
from trainwright.life.jobs import jobs
from trainwright.planning.plan import plan
from trainwright.planning.probe import Probes


@dataclass(frozen=True)
class ArmEstimate:
    """One arm: its runs, and what one of them is expected to take."""

    name: str
    runs: int
    """At most, where seeds are added until all is decided."""
    trials: int
    seconds: float | None
    """Of one run, training alone."""
    memory_bytes: float | None
    steps: float | None


@dataclass(frozen=True)
class Estimate:
    """The whole comparison; ``shared`` are stages that run once, with ``True`` where the store has them."""

    arms: list[ArmEstimate]
    shared: list[tuple[str, bool]]
    seconds: float | None
    memory_bytes: float | None
    """Of all runs that are made at a time."""
    at_a_time: int = 1
    until: bool = False
    """Whether seeds are added until all is decided: runs and seconds are then the most that it may take."""


def estimate(c: Comparison) -> Estimate:
    """Check everything and estimate; nothing runs but a short probe of each arm. ``c.jobs`` is decided where
    that was left open.

    Raises:
        UserError: whatever ``Comparison.check`` finds.
    """
    c.check()
    arms, before = [], 0.0
    probes = Probes(brief=True)                            # kept: what all arms come from is probed once
    for i, arm in enumerate(c.spec.arms):
        figures: dict[str, float] = {}
        if c.trains:
            planned = plan(c.recipes.bare(arm, c.limit(None)), c.store, probes=probes)
            figures = planned.stages[-1].figures
            if not i:
                before = sum(p.figures.get("seconds", 0.0) for p in planned.stages[:-1] if not p.cached)
        trials = len(c.candidates[arm.name]) * c.spec.settings.tune_seeds
        arms.append(_arm(c, arm.name, figures, trials))
    common = c.recipes.common(c.spec.arms[0])
    listed = jobs(common, c.store) if common else []
    shared = [(j.stage.name, c.store.find(j.stage.name, j.key) is not None) for j in listed]
    known = [a for a in arms if a.seconds is not None]
    memory = max((a.memory_bytes for a in arms if a.memory_bytes), default=None)
    c.jobs = c.jobs or _at_a_time(c, memory)
    total = before + sum((a.runs + a.trials) * (a.seconds or 0.0) for a in known) / c.jobs if known else None
    if memory is not None:
        memory *= c.jobs
    return Estimate(arms, shared, total, memory, c.jobs, c.spec.settings.until_decided)


def _at_a_time(c: Comparison, memory: float | None) -> int:
    """How many runs to make at a time. Where seconds are spent each has the machine to itself; Ray has its
    own count of what its nodes can take."""
    alone = c.spec.currency == "seconds" or c.engine == "ray"
    return 1 if alone else at_a_time(memory)


def _arm(c: Comparison, name: str, figures: dict[str, float], trials: int) -> ArmEstimate:
    """An arm's figures. A plan has the length of the recipe: a budget in FLOPs or seconds scales it."""
    steps, seconds = figures.get("steps"), figures.get("seconds")
    amount = c.spec.amount
    if amount is not None and steps and seconds:
        if c.spec.currency == "seconds":
            steps, seconds = steps * amount / seconds, amount
        elif c.spec.currency == "flops" and figures.get("flops"):
            share = amount / figures["flops"]
            steps, seconds = steps * share, seconds * share
        if steps < 1:
            budget = f"{amount:g} {c.spec.currency}"
            raise UserError(f"arm {name!r}: the budget of {budget} is too small for one step.")
    return ArmEstimate(name, c.spec.most, trials, seconds, figures.get("memory_bytes"), steps)
