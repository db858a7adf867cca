"""A few steps of a training stage, and what they tell of all of it.

The stage is built as a run builds it (its model, its methods, its data where they are made already; fresh weights and made-up
rows where they are not), and takes steps of the recipe's own micro-batches where those are quick, and of nothing else, so that
the memory has the history that it will have in the run. Where they are not, or others are asked for too, it takes steps of few
rows, then of more. Peak memory and seconds are close to linear in the rows of a micro-batch: what was not tried is read off the
line through the two points that are nearest. Nothing comes from a table; the few constants of what is not tried are in capitals.
"""
from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from trainwright import families
from trainwright.core import flops, hardware, ledger, sharding
from trainwright.core.context import Context
from trainwright.core.loop import Train
from trainwright.core.method import Batch, Method, Objective, Surgery, Tensors, Update, Weigh
from trainwright.core.recipe import Recipe
from trainwright.core.store import Store
from trainwright.life.jobs import Job, jobs
from trainwright.planning.synthetic import Synthetic
from trainwright.stages._training import assemble, parameter_counts, stage_of, state_bytes

FIRST = 512
"""Tokens of the first and smallest micro-batch, about."""
MOST_STEPS = 9
"""With micro-batches of one size."""
STEADY = 4
"""Steps at the least with the micro-batches of the recipe: the second is slow too, while memory still grows."""
SECONDS, SECONDS_A_PARAMETER = 4.0, 1e-7
"""How long a stage is tried; a large model longer."""
WORK = 1e12
"""FLOPs that a stage is tried with even where the machine takes longer for them, so that a busy one does not predict worse …"""
MOST_SECONDS = 20.0
"""… up to so many seconds."""
SHARE = 0.8
"""Part of the memory there is that a trial may come to need."""
COMPILE_SECONDS = {"cpu": 22.0, "cuda": 60.0}
"""What torch.compile takes at the start: measured with nothing in its cache (a second time it is 3 s); not tried."""
COMPILE_GAIN = {"cpu": 1.2, "cuda": 1.0}
"""How much faster compiled code is: measured on CPUs in bfloat16 (1.1 at 30 M parameters, 1.3 at 1 M); not tried."""
COMPILE_KEEPS = 0.7
"""Part of the memory of a micro-batch that compiled code takes: measured on CPUs; not tried."""


@dataclass(frozen=True)
class Point:
    """Micro-batches of so many rows: the most bytes in use, seconds of one micro-batch, and of the rest of a step."""

    rows: int
    bytes: float
    seconds: float
    rest: float


@dataclass(frozen=True)
class Trial:
    """What the trial of a stage has told. ``points`` grow in rows; ``fixed`` is what is in use between two steps."""

    parameters: int
    trainable: int
    flops_per_token: float
    fixed: float
    points: tuple[Point, ...]
    compiled: bool
    device: str

    def memory_bytes(self, rows: int) -> float:
        """The peak with micro-batches of so many rows."""
        peak = self._line(rows, [p.bytes for p in self.points], self.fixed)
        if not self.compiled:
            return peak
        gradients = 4.0 * self.trainable
        return self.fixed + gradients + COMPILE_KEEPS * max(0.0, peak - self.fixed - gradients)

    def seconds(self, rows: int, accumulate: int, steps: int) -> float:
        """Of all steps."""
        forth = max(0.0, self._line(rows, [p.seconds for p in self.points], 0.0)) * accumulate
        if not self.compiled:
            return steps * (forth + self.points[-1].rest)
        return COMPILE_SECONDS[self.device] + steps * (forth / COMPILE_GAIN[self.device] + self.points[-1].rest)

    def _line(self, rows: int, values: list[float], none: float) -> float:
        """Between two points, or on beyond the last two; never below what fewer rows took. From what no rows take to the point
        where there is one."""
        if len(values) == 1:
            return none + max(0.0, values[0] - none) * rows / self.points[0].rows
        i = next((i for i, p in enumerate(self.points[1:-1], 1) if p.rows >= rows), len(values) - 1)
        (x0, y0), (x1, y1) = ((self.points[j].rows, values[j]) for j in (i - 1, i))
        return y0 + max(0.0, (y1 - y0) / (x1 - x0)) * (rows - x0)


def attempt(recipe: Recipe, root: Path, name: str, part: float = 1.0) -> Trial:
    """Build the stage and take steps of it, more and more rows, for as long as its size deserves, or for ``part`` of that."""
    families.quiet()
    store = Store(root)
    job = next(j for j in jobs(recipe, store) if j.stage.name == name)
    stage = stage_of(job)
    run, compiled = build(job, store)
    counts, base = parameter_counts(run), ledger.memory()
    real, tokens_a_row = stage.batch_rows(job) // (sharding.world() * stage.accumulate), stage.row_tokens(job) or FIRST
    effort = _Effort(run, min(stage.accumulate, 2), part)
    points, rows = list[Point](), min(real, max(1, FIRST // tokens_a_row))
    counted, tokens = effort.count(rows)
    rows = real if part == 1.0 and effort.affords(real, rows, base) else rows
    while rows:
        points.append(effort.point(rows, STEADY if rows == real and part == 1.0 else 2))
        rows = effort.next(points, real, base)
    fixed = base + state_bytes(run)
    return Trial(counts["parameters"], counts["trainable"], counted / tokens if tokens else 0.0, fixed, tuple(points), compiled,
                 run.ctx.device.type)


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

    run = assemble(job, store, ctx, steps=2**62, methods=None if job.ready(store) else made_up)
    run.accumulate, run.eval_every, run.count_flops = 1, 0, False
    compiled, run.ctx.compile = run.ctx.compile, False
    return run, compiled


class _Effort:
    """Takes steps of a stage, and knows how many more are worth their time."""

    def __init__(self, run: Train, parts: int, part: float) -> None:
        self.run, self.parts, self.began = run, parts, time.perf_counter()
        self.enough = part * (SECONDS + SECONDS_A_PARAMETER * parameter_counts(run)["parameters"])
        self.work, self.work_a_row = part * WORK, 0.0

    def count(self, rows: int) -> tuple[float, int]:
        """FLOPs and tokens of so many rows."""
        run = self.run
        run.ctx.batch_rows = rows
        batch = run.pull()
        if not all(m.count(batch) for _, m in run.of(Objective)):
            return 0.0, 0
        with flops.counting() as counter:
            run.gradients([batch])
        self.work_a_row = counter.flops / rows
        return counter.flops, batch["input_ids"].numel() if "input_ids" in batch else 0

    def point(self, rows: int, least: int) -> Point:
        """``least`` steps with micro-batches of so many rows, fewer where they take long and more where they are quick. The
        first warms up."""
        self.run.ctx.batch_rows, self.run.accumulate = rows * self.parts, self.parts
        ledger.reset_peak()
        took = [self.step(), self.step()]
        while len(took) < MOST_STEPS and sum(took[-1]) < 0.5 * self.left() + (MOST_SECONDS if len(took) < least else 0.0):
            took.append(self.step())
        forth, rest = (statistics.median(t[i] for t in took[1:]) for i in (0, 1))
        return Point(rows, ledger.peak_memory(), forth / self.parts, rest)

    def step(self) -> tuple[float, float]:
        """Seconds of the gradients, and of the rest of a step."""
        clock, began = _Timed(self.run), _now()
        self.run.gradients = clock  # type: ignore[method-assign]
        self.run.step()
        self.run.gradients = clock.gradients  # type: ignore[method-assign]
        self.work -= self.work_a_row * self.run.ctx.batch_rows
        return clock.seconds, _now() - began - clock.seconds

    def affords(self, rows: int, counted: int, base: float) -> bool:
        """Whether two steps with micro-batches of so many rows are little work, and fit by what ``counted`` rows took."""
        needed = base + (ledger.peak_memory() - base) * rows / counted
        return 0 < 2 * self.parts * self.work_a_row * rows <= self.work and needed <= SHARE * hardware.memory_bytes()

    def left(self) -> float:
        """Seconds."""
        return self.enough - (_now() - self.began)

    def next(self, points: list[Point], real: int, base: float) -> int:
        """Rows of the next micro-batch to try, 0 where it is enough: two steps of them are to be worth it, and to fit."""
        last = points[-1]
        second, flop = 2 * self.parts * last.seconds / last.rows, 2 * self.parts * self.work_a_row
        worth = max(self.left() / second, self.work / flop if flop else 0.0)
        most = min(worth, (self.left() + MOST_SECONDS) / second)
        room = (SHARE * hardware.memory_bytes() - base) / max(1.0, (last.bytes - base) / last.rows)
        rows = min(real, int(min(most, room)))
        if len(points) == 1 and room >= 2 * last.rows:
            rows = max(rows, min(real, 2 * last.rows))                   # a line takes two points
        return rows if rows > last.rows and (rows == real or rows > 1.5 * last.rows or len(points) == 1) else 0


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
