"""What a step of each arm costs: FLOPs and bytes counted on real steps, and seconds.

Each arm's stage is built in a process of its own, so that what another left behind does not count against it.
The baseline's process stays; it and the arm's take turns, some steps each, so that a noisy machine hits both
equally.
"""
from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trainwright.compare.execute import write
from trainwright.compare.failures import Failed, answer, ask, begin
from trainwright.core import files
from trainwright.core.recipe import Recipe
from trainwright.planning.worker import Worker
from trainwright.storage.store import Store, key_of

ROUNDS, SLOW_ROUNDS, SLOW = 5, 3, 2.0
"""Turns of each side; fewer where a step takes longer than so many seconds."""
COUNTED = 4
"""Steps whose FLOPs are counted, so that work which a method does only every few steps counts too."""
BYTES = "tensors"
"""Which bytes are counted as memory; part of the name under which costs are kept."""
TURN = 0.4
"""Seconds that a turn takes, roughly; at least a step."""


@dataclass(frozen=True)
class Costs:
    """Of one step of an arm. ``rounds`` are its seconds turn by turn, ``baseline_rounds`` those of the
    baseline in the same turns; ``peak_memory_bytes`` are those of tensors (``live``)."""

    tokens: float
    flops: float
    seconds: float
    peak_memory_bytes: float
    trainable_parameters: int
    parameters: int
    state_bytes: int
    compiled: bool
    rounds: tuple[float, ...]
    baseline_rounds: tuple[float, ...]


class Stepper:
    """An arm's stage, built as the run will build it, ready to step. Lives in a worker."""

    def __init__(self, recipe: Recipe, stage: str, store: Path) -> None:
        from trainwright import families
        from trainwright.core import flops, sharding
        from trainwright.life.jobs import jobs
        from trainwright.life.listener import Listener
        from trainwright.life.stage_run import StageRun
        from trainwright.planning import live
        from trainwright.stages._training import assemble, parameter_counts, state_bytes
        families.quiet()
        sharding.start()
        held = Store(store)
        job = next(j for j in jobs(recipe, held) if j.stage.name == stage)
        inputs = {role: [s.path(held, job.where) for s in found] for role, found in job.inputs.items()}
        self.folder = tempfile.TemporaryDirectory()
        at = Path(self.folder.name)
        self.run = assemble(job, held, StageRun(job, held, at, at, Listener(), inputs).context())
        ctx, self.run.count_flops = self.run.ctx, False
        compiled, ctx.compile = ctx.compile, False         # compiled code hides what it computes
        counted = min(COUNTED, self.run.steps)
        with live.counting() as peak, flops.counting() as counter:
            for _ in range(counted):
                self.run.step()
        ctx.compile = compiled
        self.facts: dict[str, Any] = {
            "flops": counter.flops / counted, "tokens": self.run.ledger.tokens / counted,
            "compiled": bool(compiled), "peak_memory_bytes": peak.bytes, "state_bytes": state_bytes(self.run),
            **parameter_counts(self.run)}
        self.steps(2 if compiled else 1)

    def steps(self, n: int) -> float:
        """Seconds of a step, over ``n`` of them."""
        began = time.perf_counter()
        for _ in range(n):
            if self.run.ctx.step >= self.run.steps - 1:    # its last step measures: a short stage starts over
                self.run.ctx.step = 0
            self.run.step()
        return (time.perf_counter() - began) / n

    def close(self) -> dict[str, Any]:
        self.folder.cleanup()
        return self.facts


_stepper: list[Stepper] = []


def open_stepper(recipe: Recipe, stage: str, store: Path) -> None:
    """In a worker: build the stage."""
    _stepper[:] = [Stepper(recipe, stage, store)]


def turn(n: int) -> float:
    """In a worker: take ``n`` steps; returns the seconds of one."""
    return _stepper[0].steps(n)


def close_stepper() -> dict[str, Any]:
    """In a worker: what was counted."""
    return _stepper.pop().close()


def measure(recipes: dict[str, Recipe], baseline: str, stage: str, store: Store, keys: dict[str, str],
            done: Callable[[str], None]) -> tuple[dict[str, Costs], dict[str, str]]:
    """The costs of all arms, and why the others failed. What was measured before with these settings is kept.

    Args:
        recipes: the arm's stage and what it comes from, by arm.
        keys: the hash of each arm's stage, under which the costs are kept.
        done: called with the name of each arm once it is measured.
    """
    found: dict[str, Costs] = {}
    failed: dict[str, str] = {}
    places = {arm: _place(store, keys[arm], keys[baseline]) for arm in recipes}
    base: Worker | None = None
    with contextlib.ExitStack() as end:
        def opened(arm: str) -> Worker:
            worker = end.enter_context(Worker())
            begin(worker, open_stepper, recipes[arm], stage, store.root)
            return worker

        for arm in sorted(recipes, key=lambda a: a == baseline):   # the baseline last: measured all along
            if (kept := _read(places[arm], store)) is not None:
                found[arm] = kept
                continue
            worker = opened(arm) if arm != baseline else None      # builds its stage beside the baseline
            try:
                if base is None:
                    base = opened(baseline)
                    answer(base)
            except Failed as error:
                failed[baseline] = str(error)
                break
            try:
                found[arm] = _alone(base, found) if worker is None else _pair(base, worker)
            except Failed as error:
                failed[arm] = str(error)
                if base.process is None:
                    base = None
                continue
            write(store.folder("runs") / places[arm].name, asdict(found[arm]))
            done(arm)
    return {arm: one_clock(cost, found.get(baseline)) for arm, cost in found.items()}, failed


def one_clock(cost: Costs, base: Costs | None) -> Costs:
    """The costs with seconds by the baseline's clock of now: an arm that was measured another day, or
    beside other work, keeps its ratio to the baseline of that time."""
    then = statistics.median(cost.baseline_rounds)
    if base is None or not then:
        return cost
    factor = base.seconds / then
    return replace(cost, seconds=cost.seconds * factor, rounds=tuple(s * factor for s in cost.rounds),
                   baseline_rounds=tuple(s * factor for s in cost.baseline_rounds))


def _place(store: Store, key: str, baseline: str) -> Path:
    """Where the costs of an arm are kept."""
    return store.root / "runs" / f"costs-{key_of(key, baseline, BYTES)}.json"


def _read(file: Path, store: Store) -> Costs | None:
    """What was measured before; where the file is damaged it is named, and the arm measured again."""
    if not os.path.lexists(file):
        return None
    try:
        with files.expected(file):
            written = files.read_json(file)
            if not all(isinstance(v, int | float | list) for v in written.values()):
                raise TypeError("a cost is no number")
            rounds = {n: tuple(map(float, written[n])) for n in ("rounds", "baseline_rounds")}
            return Costs(**written | rounds)
    except files.Damaged as error:
        store.skip(f"runs/{file.name}", str(error))
        return None


def _pair(base: Worker, worker: Worker) -> Costs:
    """The costs of an arm, measured in turns with the baseline; its worker ends with them."""
    with worker:
        answer(worker)
        mine, theirs = _turns(worker, base)
        return _costs(ask(worker, close_stepper), mine, theirs)


def _alone(base: Worker, others: dict[str, Costs]) -> Costs:
    """The costs of the baseline, from its turns beside the others, or from some of its own."""
    rounds = [s for c in others.values() for s in c.baseline_rounds] or _turns(base, None)[0]
    return _costs(ask(base, close_stepper), rounds, rounds)


def _turns(worker: Worker, other: Worker | None) -> tuple[list[float], list[float]]:
    first = ask(worker, turn, 1)
    rounds = SLOW_ROUNDS if first > SLOW else ROUNDS
    n = max(1, round(TURN / max(first, 1e-4)))
    mine, theirs = [], []
    for i in range(rounds):
        for who in ((0, 1), (1, 0))[i % 2]:
            if who == 0:
                mine.append(ask(worker, turn, n))
            elif other is not None:
                theirs.append(ask(other, turn, n))
    return mine, theirs


def _costs(facts: dict[str, Any], mine: list[float], theirs: list[float]) -> Costs:
    return Costs(tokens=facts["tokens"], flops=facts["flops"], seconds=statistics.median(mine),
                 peak_memory_bytes=facts["peak_memory_bytes"], trainable_parameters=facts["trainable"],
                 parameters=facts["parameters"], state_bytes=facts["state_bytes"], compiled=facts["compiled"],
                 rounds=tuple(mine), baseline_rounds=tuple(theirs))
