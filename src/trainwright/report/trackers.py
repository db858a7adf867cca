"""Experiment trackers as listeners: each is imported when a recipe names it, and gets what ``metrics.jsonl``
holds."""
from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from trainwright.core.errors import UserError, suggest
from trainwright.core.files import read_json, write_text
from trainwright.core.stage import plain
from trainwright.life.listener import Listener
from trainwright.storage.artifact import MANIFEST

if TYPE_CHECKING:
    from trainwright.core.recipe import Recipe


class Life(NamedTuple):
    """What a tracker is told of a run before its first number."""

    name: str
    config: dict[str, Any]
    """The recipe's table, the hardware, the versions."""

    @property
    def id(self) -> str:
        """The same for the same recipe: a run that goes on is one run, however often it was interrupted."""
        told = json.dumps([self.name, self.config.get("recipe")], sort_keys=True, default=str)
        return hashlib.sha256(told.encode()).hexdigest()[:16]


def life(recipe: Recipe) -> Life:
    """What there is to tell of a recipe."""
    from trainwright.storage.versions import describe, versions
    stages = {stage.name: plain(stage) for stage in recipe.stages}
    told = {"title": recipe.title, "seed": recipe.seed, "stages": stages, "text": recipe.text}
    return Life(recipe.file.stem, {"recipe": told, "hardware": describe(), "versions": versions()})


def make(name: str, folder: Path, of: Life) -> Listener:
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
    return known[name](module, folder, of)


class Tracker(Listener):
    """Sends rows, figures and texts to a tracker's module; a subclass says how. A run is opened with its
    first number, so that a recipe of which nothing is left to run makes none."""

    name: ClassVar[str]
    module: ClassVar[str]

    def __init__(self, module: Any, folder: Path, of: Life) -> None:
        self.api, self.folder, self.life, self.opened, self.ended = module, folder, of, False, False

    def open(self) -> None:
        """Start the run, or go on with it."""

    def log(self, stage: str, numbers: dict[str, float], step: int) -> None:
        """Numbers of one stage at one step."""
        raise NotImplementedError

    def write(self, stage: str, name: str, text: str, step: int) -> None:
        """A text of a stage: what its model wrote."""

    def end(self) -> None:
        """Finish the run."""

    def close(self) -> None:
        if self.opened and not self.ended:
            self.ended = True
            self.end()

    def begin(self) -> None:
        """Open the run, once."""
        if not self.opened:
            self.opened = True
            self.open()

    def step(self, stage: str, row: dict[str, float]) -> None:
        self.begin()
        self.log(stage, {k: v for k, v in row.items() if k not in ("step", "steps")}, int(row["step"]))

    def stage(self, name: str, kind: str, state: str, info: dict[str, Any]) -> None:
        """What a finished stage measured and its model wrote; that of a cached one was sent when it ran."""
        numbers = flat(info) if state == "finished" else {}
        if not numbers:
            return
        self.begin()
        step = int(info.get("steps", 0))
        self.log(name, {f"final/{k}": v for k, v in numbers.items()}, step)
        for title, text in _texts(info).items():
            self.write(name, title, text, step)


def _texts(info: dict[str, Any]) -> dict[str, str]:
    """What the stage's artifact shows of what was written."""
    file = Path(str(info.get("path", ""))) / MANIFEST
    return dict(read_json(file).get("texts", {})) if file.is_file() else {}


class TensorBoard(Tracker):
    """A TensorBoard run for each stage, so that stages lie over one another in its charts."""

    name, module = "tensorboard", "torch.utils.tensorboard"

    def open(self) -> None:
        self.writers: dict[str, Any] = {}

    def writer(self, stage: str, step: int) -> Any:
        if stage not in self.writers:
            folder = str(self.folder / self.life.name / stage)  # purging: an interrupted run wrote too much
            made = self.writers[stage] = self.api.SummaryWriter(folder, purge_step=step)
            told = json.dumps(self.life.config, indent=1, default=str)
            made.add_text("config", f"```json\n{told}\n```", step)
        return self.writers[stage]

    def log(self, stage: str, numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.writer(stage, step).add_scalar(name, value, step)

    def write(self, stage: str, name: str, text: str, step: int) -> None:
        self.writer(stage, step).add_text(name, f"```\n{text}\n```", step)

    def end(self) -> None:
        for writer in self.writers.values():
            writer.close()


class WeightsAndBiases(Tracker):
    """One W&B run in which each stage counts its own steps. ``WANDB_*`` variables apply."""

    name, module = "wandb", "wandb"

    def open(self) -> None:
        project = os.environ.get("WANDB_PROJECT", "trainwright")
        self.run = self.api.init(project=project, name=self.life.name, dir=str(self.folder), id=self.life.id,
                                 resume="allow", config=self.life.config)
        self.stages: set[str] = set()

    def log(self, stage: str, numbers: dict[str, float], step: int) -> None:
        if stage not in self.stages:
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self.stages.add(stage)
        self.run.log({f"{stage}/{k}": v for k, v in numbers.items()} | {f"{stage}/step": step})

    def write(self, stage: str, name: str, text: str, step: int) -> None:
        self.run.log({f"{stage}/{name}": self.api.Table(columns=["text"], data=[[text]])})

    def end(self) -> None:
        self.run.finish()


class MLflow(Tracker):
    """One MLflow run, in a database below the folder, or where ``MLFLOW_TRACKING_URI`` says."""

    name, module = "mlflow", "mlflow"

    def open(self) -> None:
        if "MLFLOW_TRACKING_URI" not in os.environ:
            self.api.set_tracking_uri(f"sqlite:///{(self.folder / 'mlflow.db').resolve()}")
        self.api.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "trainwright"))
        kept = self.folder / f"mlflow-{self.life.id}.txt"      # MLflow gives the numbers of its runs itself
        run = self.api.start_run(run_id=kept.read_text() if kept.is_file() else None, run_name=self.life.name)
        write_text(kept, str(run.info.run_id))
        self.api.log_dict(self.life.config, "config.json")
        self.api.set_tags({"seed": self.life.config["recipe"]["seed"], **self.life.config["versions"]})

    def log(self, stage: str, numbers: dict[str, float], step: int) -> None:
        allowed = {re.sub(r"[^\w\-. :/]", "_", f"{stage}/{k}"): v for k, v in numbers.items()}
        self.api.log_metrics(allowed, step=step)

    def write(self, stage: str, name: str, text: str, step: int) -> None:
        self.api.log_text(text, re.sub(r"[^\w\-.]", "_", f"{stage}-{name}") + ".txt")

    def end(self) -> None:
        self.api.end_run()


class Trackio(Tracker):
    """One Trackio run; its own settings say where it is kept."""

    name, module = "trackio", "trackio"

    def open(self) -> None:
        self.run = self.api.init(project="trainwright", name=f"{self.life.name}-{self.life.id}",
                                 config=self.life.config, resume="allow")

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
