"""Settings with which a recipe's training stages fit into a given amount of memory."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from trainwright.core import hardware
from trainwright.core.errors import UserError
from trainwright.core.recipe import Recipe
from trainwright.life.jobs import Job, jobs
from trainwright.planning.plan import Machine, StagePlan, examine
from trainwright.planning.probe import Probe, Probes
from trainwright.stages._training import stage_of
from trainwright.stages.train import TrainStage
from trainwright.storage.store import Store

Changes = dict[str, Any]
MOST_PARTS = 2**16
"""Micro-batches a step beyond which none are proposed."""


@dataclass
class Proposal:
    """What to change of one stage, and what it then takes; ``fits`` is None where that is not known."""

    stage: str
    fits: bool | None
    changes: Changes = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    note: str = ""


class _Least(Exception):
    """More than the limit is needed, whatever a probe would measure."""


class _NoProbe(Exception):
    """The machine has less memory than the limit, and too little for a probe of the stage."""


def propose(recipe: Recipe, store: Store, limit: float, ranks: int = 0) -> list[Proposal]:
    """For each training stage that is to run, the first of its ``options`` that fits into ``limit`` bytes; of
    each of so many ``ranks`` of another machine, where there are any."""
    machine = Machine(ranks) if ranks else None
    with Probes() as probes, Probes(shared=True) as quick:
        return [_propose(recipe, job, _Search(recipe, job.stage.name, store, limit, machine), probes, quick)
                for job in jobs(recipe, store)
                if job.stage.trains and not store.find(job.stage.name, job.key)]


def options(stage: TrainStage, rows: int, tokens: int | None) -> list[list[Changes]]:
    """Changes in the order in which they are tried, in groups in which each needs less memory than the last.

    More and smaller micro-batches, which cost little and change no result; checkpointing, which costs a
    third more time; at last a smaller batch, of one micro-batch so that gradients need not wait for another,
    which changes what is learned.
    """
    parts = [n for n in range(stage.accumulate, min(rows, MOST_PARTS) + 1) if rows % n == 0]
    finer: list[Changes] = [{"accumulate": n} for n in parts]
    groups = [finer] if stage.checkpointing else [finer, [{"checkpointing": True, **c} for c in finer]]
    key, unit = "batch_size", 1
    if tokens is not None and stage.batch_size is None:
        key, unit = "batch_tokens", tokens
    fewer = [rows // 2**i for i in range(1, rows.bit_length())]
    groups.append([{"checkpointing": True, "accumulate": 1, key: n * unit} for n in fewer])
    return [[{k: v for k, v in c.items() if v != getattr(stage, k)} for c in group] for group in groups]


def _propose(recipe: Recipe, job: Job, search: _Search, probes: Probes, quick: Probes) -> Proposal:
    name, stage, least, limit = job.stage.name, stage_of(job), float("inf"), search.limit
    for group in options(stage, stage.batch_rows(job), stage.row_tokens(job)):
        search = dataclasses.replace(search, least=float("inf"), fixed=0.0, line=None)
        try:
            for changes in group:
                planned = search.tried(changes, quick, last=changes is group[-1])
                if search.fixed > limit:
                    note = f"between two steps it takes {search.fixed / 2**30:.2f} GiB already"
                    return Proposal(name, False, note=note)
                tried = planned is not None and planned.predicted is None
                if tried and planned.figures.get("memory_bytes", 0.0) <= limit:
                    planned = search.tried(changes, probes, last=True)       # in a process of its own
                if planned is not None and "memory_bytes" not in planned.figures:
                    return Proposal(name, None, note=planned.note)
                if planned is not None and planned.figures["memory_bytes"] <= limit:
                    return Proposal(name, True, changes, planned.figures)
        except _NoProbe as error:
            return Proposal(name, None, note=str(error))
        least = min(least, search.least)
    note = (f"it needs {least / 2**30:.2f} GiB at the least; shorter rows, a smaller model or fewer trained "
            "parameters need less")
    return Proposal(name, False, note=note)


@dataclass
class _Search:
    """Goes through the changes of a group, and probes those that are likely to fit by earlier probes."""

    recipe: Recipe
    stage: str
    store: Store
    limit: float
    machine: Machine | None = None
    least: float = float("inf")
    fixed: float = 0.0
    line: Callable[[int], float] | None = None

    def tried(self, changes: Changes, probes: Probes, last: bool) -> StagePlan | None:
        """The plan with these changes; None where they are not worth a probe, or not possible."""
        changed = with_changes(self.recipe, self.stage, changes)
        try:
            job = next(j for j in jobs(changed, self.store) if j.stage.name == self.stage)
            stage = stage_of(job)
            rows = stage.batch_rows(job) // stage.accumulate
            if self.line is not None and self.line(rows) > self.limit and not last:
                return None
            planned = examine(changed, job, self.store, probes, self.check, self.machine)
        except _Least:
            return None
        except UserError:                          # a law chose a batch that does not divide like this
            return None
        if planned.predicted is not None:
            self.least = min(self.least, planned.figures["memory_bytes"])
            self.fixed = planned.predicted.weights + planned.predicted.states
        elif "memory_bytes" in planned.figures:
            probe, memory = probes.of(changed, job, self.store), planned.figures["memory_bytes"]
            assert probe is not None                   # or there would be no such figure
            self.least, self.fixed = min(self.least, memory), probe.fixed
            self.line = partial(_beyond, probe, memory - probe.memory_bytes(rows))
        return planned

    def check(self, needed: float, where: str) -> None:
        if needed > self.limit:
            self.least = min(self.least, needed)
            raise _Least
        if needed > hardware.memory_bytes():
            raise _NoProbe("this machine has too little memory to try it")


def _beyond(probe: Probe, more: float, rows: int) -> float:
    return probe.memory_bytes(rows) + more


def with_changes(recipe: Recipe, name: str, changes: Changes) -> Recipe:
    """The recipe with other settings of one stage."""
    stages = [dataclasses.replace(s, **changes) if s.name == name else s for s in recipe.stages]
    return dataclasses.replace(recipe, stages=tuple(stages))
