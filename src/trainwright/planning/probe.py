"""Probes: a few steps of a training stage, from which its memory and time are estimated.

The stage is built as a run builds it: its model, its methods and its data where those exist already, fresh
weights and synthetic rows where they do not. Where the recipe's own micro-batches are quick, the probe takes
steps of those and of nothing else, so that memory has the history that it will have in the run. Where they
are slow, or other sizes are asked for too, it takes steps of few rows, then of more: of each size one, where
a few rows alone are much work for a CPU. Peak memory and seconds are close to linear in the rows of a
micro-batch: what was not tried is read off the line through the two nearest points. Each probe has a process
of its own, because what an earlier one left behind would count against it.

Where the run compiles its steps, the probe does, with the recipe's own micro-batches: what the compiler
takes, keeps and gains differs too much from model to model to be guessed. The code lies in torch's cache from
then on, where the run finds it; a probe that had to make it is taken again, since the memory in which it was
made is none that the run takes. Only where that is too much to try, or too little time is given, is it
guessed. Nothing comes from a table; the constants for what no probe measures are in capitals.
"""
from __future__ import annotations

import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from trainwright import families
from trainwright.core import flops, hardware, ledger, sharding
from trainwright.core.context import ENDLESS, Context
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.method import Batch, Method, Objective, Surgery, Tensors, Update, Weigh
from trainwright.core.recipe import Recipe
from trainwright.life.jobs import Job, jobs
from trainwright.planning import forkserver
from trainwright.planning.synthetic import Synthetic
from trainwright.planning.worker import Died, Worker
from trainwright.stages._training import assemble, parameter_counts, stage_of, state_bytes
from trainwright.storage.store import Store

FIRST = 512
"""Tokens of the first and smallest micro-batch, about."""
MOST_STEPS = 9
"""With micro-batches of one size."""
STEADY = 4
"""Least steps with the recipe's micro-batches: the second is slow too, while memory still grows."""
SECONDS, SECONDS_A_PARAMETER = 4.0, 5e-8
"""How long a probe takes; longer for a large model."""
MUCH = 2e11
"""FLOPs of the first micro-batch, beyond which there is one of each size on a CPU."""
WORK = 1e12
"""FLOPs that a probe spends however slow the machine is, so that a busy one estimates no worse …"""
MOST_SECONDS = 20.0
"""… up to so many seconds."""
SHARE = 0.8
"""Part of the memory there is that a probe may come to need."""
BRIEF = 0.2
"""Part of a probe's effort where there are many."""
COMPILED_SECONDS = 60.0
"""What two steps with the recipe's micro-batches may take for a probe to compile them, the compiler aside."""
COMPILE_SECONDS = {"cpu": 22.0, "cuda": 60.0}
"""What torch.compile takes at the start, with an empty cache: a guess, where it is not tried."""
COMPILE_GAIN = {"cpu": 1.2, "cuda": 1.0}
"""How much faster compiled code is (on CPUs in bfloat16 1.1 at 30 M parameters, 1.3 at 1 M): a guess."""
COMPILE_KEEPS = 0.65
"""Part of the memory of a micro-batch that compiled code takes: a guess."""
COMPILE_TAKES = {"cpu": 250e6, "cuda": 0.0}
"""Bytes that the compiler leaves in the process, with a full cache: a guess."""


@dataclass(frozen=True)
class Point:
    """Micro-batches of so many rows: peak bytes, seconds of one micro-batch, and of the rest of a step."""

    rows: int
    bytes: float
    seconds: float
    rest: float


@dataclass(frozen=True)
class Probe:
    """What the probe of a stage measured; ``fixed`` are the bytes in use between two steps."""

    parameters: int
    trainable: int
    flops_per_token: float
    fixed: float
    points: tuple[Point, ...]
    device: str
    guessed: bool = False
    """Whether the run compiles its steps and the probe did not."""
    start: float = 0.0
    """Seconds that the compiler took at the start."""
    anew: bool = False
    """Whether it made code that was not in its cache: the next process finds it there."""

    def memory_bytes(self, rows: int) -> float:
        """The peak with micro-batches of so many rows."""
        peak = self._line(rows, [p.bytes for p in self.points], self.fixed)
        if not self.guessed:
            return peak
        gradients = 4.0 * self.trainable
        kept = COMPILE_KEEPS * max(0.0, peak - self.fixed - gradients)
        return self.fixed + gradients + COMPILE_TAKES[self.device] + kept

    def seconds(self, rows: int, accumulate: int, steps: int) -> float:
        """Of all steps."""
        forth = max(0.0, self._line(rows, [p.seconds for p in self.points], 0.0)) * accumulate
        if not self.guessed:
            return self.start + steps * (forth + self.points[-1].rest)
        step = forth / COMPILE_GAIN[self.device] + self.points[-1].rest
        return COMPILE_SECONDS[self.device] + steps * step

    def _line(self, rows: int, values: list[float], none: float) -> float:
        """Between two points, or beyond the last two; never below what fewer rows took. With a single point:
        between that and what no rows take."""
        if len(values) == 1:
            return none + max(0.0, values[0] - none) * rows / self.points[0].rows
        i = next((i for i, p in enumerate(self.points[1:-1], 1) if p.rows >= rows), len(values) - 1)
        (x0, y0), (x1, y1) = ((self.points[j].rows, values[j]) for j in (i - 1, i))
        return y0 + max(0.0, (y1 - y0) / (x1 - x0)) * (rows - x0)


def take(recipe: Recipe, root: Path, name: str, part: float = 1.0) -> Probe | None:
    """Build the stage, and step with more and more rows for as long as its size deserves, times ``part``.

    None where its data is not there yet, and its objectives score more than rows of tokens.
    """
    families.quiet()
    store = Store(root)
    job = next(j for j in jobs(recipe, store) if j.stage.name == name)
    stage = stage_of(job)
    run, compiled = build(job, store)
    counts, base = parameter_counts(run), ledger.memory()
    real = stage.batch_rows(job) // (sharding.world() * stage.accumulate)
    tokens_a_row = stage.row_tokens(job) or FIRST
    effort = _Effort(run, min(stage.accumulate, 2), part)
    points, few = list[Point](), _halved(real, FIRST // tokens_a_row)
    for rows in (few, real):                        # an objective may look at several rows at once
        try:
            counted, tokens = effort.count(rows)
            break
        except (UserError, KeyError):
            if rows < real:
                continue
            if job.ready(store):
                raise
            return None
    tried = compiled and tokens > 0 and part == 1.0 and effort.compiles(real, rows, base)
    if tried:
        points, rows = [effort.compiled(real)], 0
    elif part == 1.0 and effort.affords(real, rows, base):
        rows = real
    while rows:
        points.append(effort.point(rows, STEADY if rows == real and part == 1.0 else 2))
        rows = effort.next(points, real, base)
    more = forkserver.untouched() if run.ctx.device.type == "cpu" else 0.0
    fixed = base + state_bytes(run) + more
    points = [replace(p, bytes=p.bytes + more) for p in points]
    flops_per_token = counted / tokens if tokens else 0.0
    return Probe(counts["parameters"], counts["trainable"], flops_per_token, fixed, tuple(points),
                 run.ctx.device.type, compiled and not tried, effort.start, tried and effort.anew())


def _halved(real: int, most: float) -> int:
    """The largest of ``real`` rows, half of them, a quarter … that is no more than ``most``: what takes rows
    in twos or in groups can do with it. At least one."""
    rows = max(1, real)
    while rows > max(1.0, most):
        rows //= 2
    return rows


class Probes:
    """Takes probes of stages, each once.

    Each has a process of its own. ``brief`` ones take a fifth of the time, and compile nothing; where they
    are ``shared``, too, one process takes them all: enough to search with.
    """

    def __init__(self, shared: bool = False, brief: bool = False) -> None:
        self.worker = Worker() if shared else None
        self.part = BRIEF if shared or brief else 1.0
        self.known: dict[tuple[str, str, bool], Probe | None] = {}

    def __enter__(self) -> Probes:
        return self

    def __exit__(self, *error: object) -> None:
        if self.worker is not None:
            self.worker.close()

    def of(self, recipe: Recipe, job: Job, store: Store) -> Probe | None:
        """The probe of a job of the recipe; None where it cannot be taken before its data is there.

        Raises:
            UserError: a mistake of the recipe that shows when the stage is built, or too little memory.
        """
        key = (str(store.root), job.key, job.ready(store))
        if key not in self.known:
            self.known[key] = self._take(recipe, job, store)
        return self.known[key]

    def _take(self, recipe: Recipe, job: Job, store: Store) -> Probe | None:
        def ask() -> Probe | None:
            with nullcontext(self.worker) if self.worker is not None else Worker() as worker:
                return worker.ask(take, recipe, store.root, job.stage.name, self.part)
        try:
            found = ask()
            return ask() if found is not None and found.anew else found
        except Died as why:
            raise UserError(f"{job.where}: the process that tried a few rows of it was ended by {why}; "
                            "most likely there is too little memory.") from None


def build(job: Job, store: Store) -> tuple[Train, bool]:
    """The stage's loop as a run builds it, uncompiled, and whether the run would compile it."""
    ctx = Context(seed=job.seed, device=sharding.device(), root=job.root)
    there = {role: found for role, found in job.inputs.items() if all(s.ready(store) for s in found)}
    ctx.inputs = {role: [s.path(store, job.where) for s in found] for role, found in there.items()}
    ctx.names = {role: [s.name for s in found] for role, found in there.items()}

    def made_up(model: nn.Module) -> list[Method]:
        tokens = stage_of(job).row_tokens(job) or 0
        rows = Synthetic(tokens=tokens, vocabulary=families.vocabulary_of(model) or 2)
        return [rows, *(m for m in job.methods if isinstance(m, (Surgery, Objective, Weigh, Update)))]

    run = assemble(job, store, ctx, steps=ENDLESS, methods=None if job.ready(store) else made_up)
    run.accumulate, run.eval_every, run.count_flops = 1, 0, False
    compiled, run.ctx.compile = run.ctx.compile, False
    return run, compiled


class _Effort:
    """Takes steps of a stage, and decides how many more are worth their time."""

    def __init__(self, run: Train, parts: int, part: float) -> None:
        self.run, self.began = run, time.perf_counter()
        self.parts = self.accumulate = parts
        self.enough = part * (SECONDS + SECONDS_A_PARAMETER * parameter_counts(run)["parameters"])
        self.work, self.work_a_row = part * WORK, 0.0
        self.slow, self.held = False, Tensors()
        self.start = 0.0

    def count(self, rows: int) -> tuple[float, int]:
        """FLOPs and tokens of so many rows."""
        run = self.run
        run.ctx.batch_rows = rows
        self.counted = batch = run.pull()
        if not all(m.count(batch) for _, m in run.of(Objective)):
            return 0.0, 0
        with flops.counting() as counter:
            grads = run.gradients([batch])
        self.slow = run.ctx.device.type == "cpu" and counter.flops > MUCH
        if self.slow and self.parts > 1:                # as an earlier micro-batch of the step leaves them
            self.parts, self.held = 1, grads
        self.work_a_row = counter.flops / rows
        return counter.flops, batch["input_ids"].numel() if "input_ids" in batch else 0

    def point(self, rows: int, least: int) -> Point:
        """``least`` steps with micro-batches of so many rows, fewer where they take long and more where they
        are quick; the first warms up. A single one where they are slow: what was counted has warmed up."""
        self.run.ctx.batch_rows, self.run.accumulate = rows * self.parts, self.parts
        ledger.reset_peak()
        took = [self.step()] if self.slow else [self.step(), self.step()]
        while len(took) < MOST_STEPS and not self.slow:
            more = MOST_SECONDS if len(took) < least else 0.0
            if sum(took[-1]) >= 0.5 * self.left() + more:
                break
            took.append(self.step())
        forth, rest = (statistics.median(t[i] for t in took[1:] or took) for i in (0, 1))
        return Point(rows, ledger.peak_memory(), forth / self.parts, rest)

    def compiles(self, rows: int, counted: int, base: float) -> bool:
        """Whether steps with micro-batches of so many rows can be tried as the run takes them, compiled."""
        began = _now()
        self.run.gradients([self.counted])
        seconds = 2 * self.accumulate * rows * (_now() - began) / counted
        return seconds <= COMPILED_SECONDS and self._fits(rows, counted, base)

    def compiled(self, rows: int) -> Point:
        """Compiled steps with micro-batches of so many rows."""
        self.run.ctx.compile, self.held = True, Tensors()
        self.run.ctx.batch_rows, self.run.accumulate = rows * self.accumulate, self.accumulate
        ledger.reset_peak()
        first, took = self.step(), [self.step()]
        while len(took) < STEADY and sum(map(sum, (*took, took[-1]))) < MOST_SECONDS:
            took.append(self.step())
        forth, rest = (statistics.median(t[i] for t in took) for i in (0, 1))
        self.start = max(0.0, sum(first) - forth - rest)
        return Point(rows, ledger.peak_memory(), forth / self.accumulate, rest)

    @staticmethod
    def anew() -> bool:
        """Whether the compiler made code that it did not find in its cache."""
        from torch._dynamo.utils import counters
        return bool(counters["inductor"]["fxgraph_cache_miss"])

    def step(self) -> tuple[float, float]:
        """Seconds of the gradients, and of the rest of a step."""
        clock, began = _Timed(self.run), _now()
        self.run.gradients = clock  # type: ignore[method-assign]
        self.run.step()
        self.run.gradients = clock.gradients  # type: ignore[method-assign]
        self.work -= self.work_a_row * self.run.ctx.batch_rows
        return clock.seconds, _now() - began - clock.seconds

    def affords(self, rows: int, counted: int, base: float) -> bool:
        """Whether two steps with micro-batches of so many rows are little work, and fit, going by
        ``counted`` rows."""
        return 0 < 2 * self.parts * self.work_a_row * rows <= self.work and self._fits(rows, counted, base)

    def _fits(self, rows: int, counted: int, base: float) -> bool:
        needed = base + (ledger.peak_memory() - base) * rows / counted
        return needed <= SHARE * hardware.memory_bytes()

    def left(self) -> float:
        """Seconds."""
        return self.enough - (_now() - self.began)

    def next(self, points: list[Point], real: int, base: float) -> int:
        """Rows of the next micro-batch to try, 0 to stop: two steps of them (one where they are slow) must be
        worth their time, and fit."""
        last = points[-1]
        steps = 1 if self.slow else 2
        second, flop = (steps * self.parts * each for each in (last.seconds / last.rows, self.work_a_row))
        worth = max(self.left() / second, self.work / flop if flop else 0.0)
        most = min(worth, (self.left() + MOST_SECONDS) / second)
        room = (SHARE * hardware.memory_bytes() - base) / max(1.0, (last.bytes - base) / last.rows)
        rows = _halved(real, min(most, room))
        if len(points) == 1:                                             # a line takes two points
            rows = max(rows, _halved(real, min(3 * last.rows, room)))
        tells = rows == real or rows > 1.5 * last.rows or len(points) == 1
        return rows if rows > last.rows and tells else 0


class _Timed:
    """The loop's gradients, and how long they took."""

    def __init__(self, run: Train) -> None:
        self.gradients, self.seconds = run.gradients, 0.0

    def __call__(self, batches: list[Batch], note: bool = False) -> Tensors:
        began = _now()
        out = self.gradients(batches, note)
        self.seconds += _now() - began
        return out


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
