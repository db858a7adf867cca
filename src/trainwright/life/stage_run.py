"""Where a stage runs: its job, its input folders, its scratch and its output folder."""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.life.jobs import Job
from trainwright.life.listener import Listener
from trainwright.storage.store import Store

PICTURES = "pictures"
"""Folder of an artifact with the pictures that its methods showed."""


@dataclass
class StageRun:
    """One run of one stage."""

    job: Job
    store: Store
    work: Path
    out: Path
    listener: Listener
    inputs: dict[str, list[Path]]
    kept: list[Path] = field(default_factory=list)
    """What stays in the work folder if the stage fails, for the next attempt."""
    texts: dict[str, str] = field(default_factory=dict)
    """What methods showed, for the report."""
    pictures: dict[str, dict[str, str]] = field(default_factory=dict)
    """By name the ``file`` of a picture in the artifact, and in ``words`` what it shows."""

    def context(self) -> Context:
        """What the stage's methods are given."""
        names = {role: [s.name for s in sources] for role, sources in self.job.inputs.items()}
        return Context(seed=self.job.seed, device=sharding.device(), inputs=self.inputs, names=names,
                       folder=self.work, kept=self.kept, cache=self.store.folder("cache"), root=self.job.root)

    def folder(self, role: str) -> Path | None:
        """The first folder that ``from`` names under a role."""
        return self.inputs[role][0] if self.inputs.get(role) else None

    def keep(self, ctx: Context, prefix: str = "") -> None:
        """Keep the texts and pictures that methods showed, for the report."""
        self.texts |= {f"{prefix}{name}": text for name, text in ctx.texts.items()}
        for name, (png, words) in ctx.pictures.items():
            file = f"{PICTURES}/{len(self.pictures):03d}.png"
            self.pictures[f"{prefix}{name}"] = {"file": file, "words": words}
            if sharding.main():
                (self.out / PICTURES).mkdir(exist_ok=True)
                (self.out / file).write_bytes(png)

    def started(self, info: dict[str, Any], resumed: bool = False) -> None:
        """Tell the listener that work begins."""
        state = "resumed" if resumed else "started"
        self.listener.stage(self.job.stage.name, self.job.stage.kind, state, info)
