"""States that a training stage keeps on the way: snapshots that its recipe names, and the best so far."""

from __future__ import annotations

import base64
import math
import shutil
from pathlib import Path
from typing import Any

from trainwright.core import checkpoint, sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.metrics import direction, improves
from trainwright.stages.train import TrainStage

BEST = "best"
"""Folder of the best state so far, in the stage's work folder."""


class Snapshots:
    """Keeps whole states of a run at the steps that its stage names."""

    def __init__(self, run: Train, stage: TrainStage, folder: Path) -> None:
        self.run, self.folder = run, folder
        self.labels = {
            str(at): round(at * run.steps) if isinstance(at, float) else at for at in stage.snapshots
        }
        for label, step in self.labels.items():
            if not 1 <= step <= run.steps:
                raise UserError(f"snapshots: {label} is step {step}, and the stage has {run.steps}.")

    def after(self) -> None:
        """After a step."""
        for label, step in self.labels.items():
            if step == self.run.ctx.step:
                if sharding.main():
                    self.folder.mkdir(exist_ok=True)
                saved = checkpoint.save(self.run, self.folder / f"{label}.part", {})
                if sharding.main():
                    shutil.rmtree(self.folder / label, ignore_errors=True)
                    saved.rename(self.folder / label)
                    shutil.rmtree(self.folder / f"{label}.part")
                sharding.barrier()


class Best:
    """Keeps the state at which a number of the evaluations was best (``keep = "best:METRIC"``).

    A run that resumes may find a best state that is later than its checkpoint. It then measures the same
    again, and what is kept in the end is the same.
    """

    def __init__(self, run: Train, stage: TrainStage, folder: Path) -> None:
        self.run, self.metric, self.folder, self.way = run, stage.best, folder, direction(stage.best)
        self.path = checkpoint.newest(folder)[0] if self.metric else None
        self.told: dict[str, Any] = checkpoint.read(self.path)["extra"] if self.path else {}

    def after(self) -> None:
        """After a step."""
        measured = {n[5:]: x for n, x in self.run.row.items() if n.startswith("eval/")}
        if self.metric and measured:
            self._look(measured)

    def end(self) -> None:
        """After the last step: a run that was stopped early has measured once more."""
        if self.metric and self.run.stopped:
            self._look(self.run.evaluation)

    def _look(self, measured: dict[str, float]) -> None:
        if self.metric not in measured:
            raise UserError(f"keep = 'best:{self.metric}': the evaluations make no such number; they make "
                            f"{', '.join(measured)}.")
        value = measured[self.metric]
        assert self.way is not None
        best = self.told.get("value")
        if not math.isfinite(value) or not (best is None or improves(value, best, self.way)):
            return
        ctx = self.run.ctx
        pictures = {n: (base64.b64encode(png).decode(), words) for n, (png, words) in ctx.pictures.items()}
        self.told = {"step": ctx.step, "value": value, "evaluation": measured, "texts": ctx.texts,
                     "pictures": pictures}
        self.path = checkpoint.save(self.run, self.folder, self.told)

    @property
    def earlier(self) -> Path | None:
        """The best state, where it is not the last one."""
        return self.path if self.told and self.told["step"] != self.run.ctx.step else None

    def show(self, ctx: Context) -> None:
        """Give back what methods showed when the best state was measured."""
        ctx.texts |= self.told["texts"]
        for name, (png, words) in self.told["pictures"].items():
            ctx.pictures[name] = base64.b64decode(png), words

    def figures(self) -> dict[str, Any]:
        """What was kept, and what was measured of it."""
        if not self.told:
            return {}
        kept = {"metric": self.metric, "value": self.told["value"], "step": self.told["step"]}
        return {"kept": kept, "evaluation": self.told["evaluation"]}
