"""Settings with which a recipe's training stages fit into a given amount of memory."""
from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from trainwright.core import hardware
from trainwright.core.errors import UserError
from trainwright.core.plan import StagePlan, examine
from trainwright.core.predict import Trials
from trainwright.core.prepare import Job, jobs
from trainwright.core.recipe import Recipe
from trainwright.core.stage_settings import TrainStage
from trainwright.core.store import Store
from trainwright.core.training import batch_rows, row_tokens

Changes = dict[str, Any]


@dataclass
class Proposal:
    """What to change of one stage, and what it then takes; ``fits`` is None where that is not known."""

    stage: str
    fits: bool | None
    changes: Changes = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    note: str = ""


class _TooMuch(Exception):
    """A stage needs at least so many bytes."""


def propose(recipe: Recipe, store: Store, limit: float) -> list[Proposal]:
    """For each training stage that is to run: the first of its ``options`` with which it is predicted to fit into ``limit`` bytes."""
    with Trials() as trials:
        return [_propose(recipe, job, store, limit, trials) for job in jobs(recipe, store)
                if isinstance(job.stage, TrainStage) and not store.find(job.stage.name, job.key)]


def options(stage: TrainStage, rows: int, tokens: int | None) -> list[list[Changes]]:
    """Changes in the order in which they are tried, in groups within which each needs less memory than the one before.

    More and smaller micro-batches, which cost little and change no result; checkpointing, which costs a third more time; at last a
    smaller batch, of one micro-batch so that gradients need not wait for another, which changes what is learned.
    """
    parts = [n for n in range(stage.accumulate, rows + 1) if rows % n == 0]
    finer: list[Changes] = [{"accumulate": n} for n in parts]
    groups = [finer] if stage.checkpointing else [finer, [{"checkpointing": True, **c} for c in finer]]
    key, unit = ("batch_size", 1) if tokens is None or stage.batch_size is not None else ("batch_tokens", tokens)
    fewer = [rows // n for n in (2**i for i in range(1, rows.bit_length()))]
    groups.append([{"checkpointing": True, "accumulate": 1, key: n * unit} for n in dict.fromkeys(fewer)])
    return [[{k: v for k, v in c.items() if v != getattr(stage, k)} for c in group] for group in groups]


def _propose(recipe: Recipe, job: Job, store: Store, limit: float, trials: Trials) -> Proposal:
    name, stage, least = job.stage.name, job.stage, float("inf")
    assert isinstance(stage, TrainStage)
    try:
        for group in options(stage, batch_rows(job, stage), row_tokens(job)):
            for changes, planned in _tried(recipe, name, group, store, limit, trials):
                if "memory_bytes" not in planned.figures:
                    return Proposal(name, None, note=planned.note)
                least = min(least, planned.figures["memory_bytes"])
                if planned.figures["memory_bytes"] <= limit:
                    return Proposal(name, True, changes, planned.figures)
    except _TooMuch as error:
        return Proposal(name, False, note=str(error))
    return Proposal(name, False, note=f"the least that was found is {least / 2**30:.2f} GiB; shorter rows, a smaller model or "
                                      "fewer trained parameters need less")


def _tried(recipe: Recipe, name: str, group: list[Changes], store: Store, limit: float,
           trials: Trials) -> Iterator[tuple[Changes, StagePlan]]:
    """Plans with some of the changes of a group: the first and the last, and those that are expected to fit from what was tried."""
    def check(needed: float, where: str) -> None:
        if needed > min(limit, hardware.memory_bytes()):
            raise _TooMuch(f"weights, gradients and the optimizer's state alone take {needed / 2**30:.2f} GiB")

    line = None
    for i, changes in enumerate(group):
        changed = with_changes(recipe, name, changes)
        try:
            job = next(j for j in jobs(changed, store) if j.stage.name == name)
            assert isinstance(job.stage, TrainStage)
            rows = batch_rows(job, job.stage) // job.stage.accumulate
        except UserError:                                          # a law chose a batch that does not divide like this
            continue
        if line is None or i == len(group) - 1 or line.memory_bytes(rows) <= limit:
            yield changes, examine(changed, job, store, trials, check)
            line = trials.of(changed, job, store)


def with_changes(recipe: Recipe, name: str, changes: Changes) -> Recipe:
    """The recipe with other settings of one stage."""
    stages = [dataclasses.replace(s, **changes) if s.name == name else s for s in recipe.stages]
    return dataclasses.replace(recipe, stages=tuple(stages))
