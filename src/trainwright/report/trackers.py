"""Experiment trackers as listeners: each is imported when a recipe names it, and gets what ``metrics.jsonl``
holds."""
from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from typing import Any, ClassVar

from trainwright.core.errors import UserError, suggest
from trainwright.core.listener import Listener


def make(name: str, folder: Path, run_name: str) -> Listener:
    """The tracker ``name``, writing below ``folder`` where it keeps files of its own.

    Raises:
        UserError: no tracker has this name, or its package is not installed.
    """
    known = {cls.name: cls for cls in Tracker.__subclasses__()}
    if name not in known:
        raise UserError(f"trackers: there is no tracker {name!r}{suggest(name, known)}.")
    try:
        module = importlib.import_module(known[name].module)
    except ImportError:
        raise UserError(f"trackers: {name!r} is not installed: pip install 'trainwright[{name}]'.") from None
    folder.mkdir(parents=True, exist_ok=True)
    return known[name](module, folder, run_name)


class Tracker(Listener):
    """Sends rows and figures to a tracker's module; a subclass says how."""

    name: ClassVar[str]
    module: ClassVar[str]

    def __init__(self, module: Any, folder: Path, run_name: str) -> None:
        self.api, self.folder, self.run_name, self.ended = module, folder, run_name, False
        self.open()

    def open(self) -> None:
        """Start the run."""

    def log(self, stage: str, numbers: dict[str, float], step: int) -> None:
        """Numbers of one stage at one step."""
        raise NotImplementedError

    def end(self) -> None:
        """Finish the run."""

    def close(self) -> None:
        if not self.ended:
            self.ended = True
            self.end()

    def step(self, stage: str, row: dict[str, float]) -> None:
        self.log(stage, {k: v for k, v in row.items() if k not in ("step", "steps")}, int(row["step"]))

    def stage(self, name: str, kind: str, state: str, info: dict[str, Any]) -> None:
        """What a finished stage measured; that of a cached one was logged when it ran."""
        if state == "finished" and (numbers := flat(info)):
            self.log(name, {f"final/{k}": v for k, v in numbers.items()}, int(info.get("steps", 0)))


class TensorBoard(Tracker):
    """A TensorBoard run for each stage, so that stages lie over one another in its charts."""

    name, module = "tensorboard", "torch.utils.tensorboard"

    def open(self) -> None:
        self.writers: dict[str, Any] = {}

    def log(self, stage: str, numbers: dict[str, float], step: int) -> None:
        if stage not in self.writers:
            folder = str(self.folder / self.run_name / stage)  # purging: an interrupted run wrote too much
            self.writers[stage] = self.api.SummaryWriter(folder, purge_step=step)
        for name, value in numbers.items():
            self.writers[stage].add_scalar(name, value, step)

    def end(self) -> None:
        for writer in self.writers.values():
            writer.close()


class WeightsAndBiases(Tracker):
    """One W&B run in which each stage counts its own steps. ``WANDB_*`` variables apply."""

    name, module = "wandb", "wandb"

    def open(self) -> None:
        project = os.environ.get("WANDB_PROJECT", "trainwright")
        self.run = self.api.init(project=project, name=self.run_name, dir=str(self.folder))
        self.stages: set[str] = set()

    def log(self, stage: str, numbers: dict[str, float], step: int) -> None:
        if stage not in self.stages:
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self.stages.add(stage)
        self.run.log({f"{stage}/{k}": v for k, v in numbers.items()} | {f"{stage}/step": step})

    def end(self) -> None:
        self.run.finish()


class MLflow(Tracker):
    """One MLflow run, in a database below the folder, or where ``MLFLOW_TRACKING_URI`` says."""

    name, module = "mlflow", "mlflow"

    def open(self) -> None:
        if "MLFLOW_TRACKING_URI" not in os.environ:
            self.api.set_tracking_uri(f"sqlite:///{(self.folder / 'mlflow.db').resolve()}")
        self.api.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "trainwright"))
        self.api.start_run(run_name=self.run_name)

    def log(self, stage: str, numbers: dict[str, float], step: int) -> None:
        allowed = {re.sub(r"[^\w\-. :/]", "_", f"{stage}/{k}"): v for k, v in numbers.items()}
        self.api.log_metrics(allowed, step=step)

    def end(self) -> None:
        self.api.end_run()


class Trackio(Tracker):
    """One Trackio run; its own settings say where it is kept."""

    name, module = "trackio", "trackio"

    def open(self) -> None:
        self.run = self.api.init(project="trainwright", name=self.run_name)

    def log(self, stage: str, numbers: dict[str, float], step: int) -> None:
        self.run.log({f"{stage}/{k}": v for k, v in numbers.items()} | {f"{stage}/step": step})

    def end(self) -> None:
        self.run.finish()


def flat(figures: dict[str, Any], before: str = "") -> dict[str, float]:
    """The numbers of nested figures, names joined by ``/``."""
    out: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            out |= flat(value, f"{before}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            out[f"{before}{name}"] = float(value)
    return out
