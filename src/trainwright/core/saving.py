"""What a training stage leaves behind while it runs: rows of metrics, checkpoints, and a way to stop it."""
from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from trainwright.core import checkpoint, sharding
from trainwright.core.loop import Diverged, Train

SAVE_SECONDS = 60.0
CHECKPOINTS = "checkpoints"
"""Folder of a stage's checkpoints, in its work folder."""


class Interrupted(KeyboardInterrupt):
    """The user or the machine asked to stop; what is done is saved."""


def check_finite(run: Train) -> None:
    """A step may spoil the weights and still tell of a finite loss: such weights are neither saved nor exported."""
    bad = [n for n, p in run.params.items() if not torch.isfinite(sharding.local(p.detach())).all()]
    if sharding.total(len(bad)):
        raise Diverged(f"the weights are no finite numbers after step {run.ctx.step} ({', '.join(bad[:2]) or 'on another rank'})")


class Metrics:
    """``metrics.jsonl``: a row a step, cut back to the checkpoint on resume."""

    def __init__(self, file: Path, step: int) -> None:
        self.handle: Any = None
        if not sharding.main():
            return
        rows = file.read_text().splitlines() if file.is_file() and step else []
        kept = [r for r in rows if r.endswith("}") and json.loads(r)["step"] <= step]
        part = file.with_suffix(".tmp")                    # at once: a process may be killed here too
        part.write_text("".join(r + "\n" for r in kept))
        part.replace(file)
        self.handle = file.open("a")

    def write(self, row: dict[str, float]) -> None:
        if self.handle is not None:
            self.handle.write(json.dumps(row) + "\n")
            self.handle.flush()

    def close(self) -> None:
        if self.handle is not None:
            self.handle.close()


class Saver:
    """Saves every so many steps, or about once a minute, and when asked to stop."""

    def __init__(self, run: Train, work: Path, every: int) -> None:
        self.run, self.every, self.folder = run, every, work / CHECKPOINTS
        self.last, self.asked = time.monotonic(), 0.0

    def after(self) -> None:
        """After a step. Raises ``Interrupted`` once the checkpoint is safe."""
        run, asked = self.run, self.asked > 0
        due = time.monotonic() - self.last > SAVE_SECONDS if not self.every else run.ctx.step % self.every == 0
        if sharding.world() > 1:                           # a signal reaches the ranks at different steps, and clocks differ
            said = sharding.gather((asked, due))
            asked, due = any(a for a, _ in said), said[0][1]
        if asked or (due and run.ctx.step < run.steps):
            check_finite(run)
            checkpoint.save(run, self.folder, {})
            self.last = time.monotonic()
        if asked:
            raise Interrupted(f"stopped at step {run.ctx.step} of {run.steps}; run the same command to go on")


@contextmanager
def signals(saver: Saver) -> Iterator[None]:
    """Ctrl-C and SIGTERM finish the step and save; a second one, a second later (torchrun repeats the first), ends at once."""
    def ask(number: int, frame: FrameType | None) -> None:
        if saver.asked and time.monotonic() - saver.asked > 1:
            raise KeyboardInterrupt
        saver.asked = saver.asked or time.monotonic()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
