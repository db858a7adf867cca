"""Trials without a process of their own: quick, and not for what memory they tell."""
from __future__ import annotations

from trainwright.core.recipe import Recipe
from trainwright.core.store import Store
from trainwright.life.jobs import Job
from trainwright.planning.predict import Trials
from trainwright.planning.probe import Trial, attempt


class Here(Trials):
    """Tries stages in this process, and remembers which."""

    def __init__(self) -> None:
        super().__init__()
        self.tried: list[str] = []

    def _tried(self, recipe: Recipe, job: Job, store: Store) -> Trial:
        self.tried.append(job.stage.name)
        return attempt(recipe, store.root, job.stage.name, 0.05)
