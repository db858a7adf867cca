"""What a training stage leaves behind while it runs: rows of metrics, checkpoints, and a way to stop it."""
from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from trainwright.core import checkpoint, ending, sharding
from trainwright.core.files import ANY, MISREAD, read_bytes
from trainwright.core.loop import Diverged, Train

SAVE_SECONDS = 60.0
CHECKPOINTS = "checkpoints"
"""Folder of a stage's checkpoints, in its work folder."""


def check_finite(run: Train) -> None:
    """A step may spoil the weights and still report a finite loss: such weights are neither saved nor
    exported."""
    bad = [n for n, p in run.params.items() if not torch.isfinite(sharding.local(p.detach())).all()]
    if sharding.total(len(bad)):
        where = ", ".join(bad[:2]) or "on another rank"
        raise Diverged(f"the weights are no finite numbers after step {run.ctx.step} ({where})")


class Metrics:
    """``metrics.jsonl``: a row a step, cut back to the checkpoint on resume."""

    def __init__(self, file: Path, step: int) -> None:
        self.handle: Any = None
        if not sharding.main():
            return
        rows = read_bytes(file, ANY).decode(errors="replace").splitlines() if file.is_file() and step else []
        kept = [r for r in rows if 1 <= _step_of(r) <= step]
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


def _step_of(row: str) -> int:
    """The step that a line of ``metrics.jsonl`` tells of; 0 for half a line."""
    try:
        return int(json.loads(row)["step"])
    except MISREAD:
        return 0


class Saver:
    """Saves every so many steps, or about once a minute, and when asked to stop."""

    def __init__(self, run: Train, work: Path, every: int) -> None:
        self.run, self.every, self.folder = run, every, work / CHECKPOINTS
        self.last = time.monotonic()
        self.patience = ending.Patience("finishing the step, then saving; once more ends it at once")

    def after(self) -> None:
        """After a step. Raises ``Interrupted`` once the checkpoint is safe."""
        run, asked = self.run, self.patience.number
        late = time.monotonic() - self.last > SAVE_SECONDS
        due = run.ctx.step % self.every == 0 if self.every else late
        if sharding.world() > 1:          # a signal reaches the ranks at different steps, and clocks differ
            said = sharding.gather((asked, due))
            asked, due = max(a for a, _ in said), said[0][1]
        if asked or (due and run.ctx.step < run.steps):
            check_finite(run)
            checkpoint.save(run, self.folder, {})
            self.last = time.monotonic()
        if asked:
            self.patience.number = 0
            raise ending.Interrupted(f"stopped at step {run.ctx.step} of {run.steps}; {ending.RESUME}", asked)


@contextmanager
def signals(saver: Saver) -> Iterator[None]:
    """Ctrl-C and its like finish the step and save; a second one ends at once."""
    with ending.patient(saver.patience):
        yield
