"""What training stages will take: each is tried for a few steps, in a process of its own."""
from __future__ import annotations

import torch

from trainwright.core.errors import UserError
from trainwright.core.prepare import Job
from trainwright.core.recipe import Recipe
from trainwright.core.store import Store
from trainwright.core.trial import Trial, attempt, unmade
from trainwright.core.worker import Died, Worker

BRIEF = 0.2
"""Part of a trial's effort where there are many."""


class Trials:
    """Tries stages, each once.

    Each has a process of its own, since what another leaves behind would be charged to it. Where ``shared``, one process tries
    them all, and more briefly: enough to search with.
    """

    def __init__(self, shared: bool = False) -> None:
        self.worker = Worker(torch.get_num_threads()) if shared else None
        self.known: dict[tuple[str, str, tuple[str, ...]], Trial] = {}

    def __enter__(self) -> Trials:
        return self

    def __exit__(self, *error: object) -> None:
        if self.worker is not None:
            self.worker.close()

    def of(self, recipe: Recipe, job: Job, store: Store) -> Trial:
        """The trial of a job of the recipe.

        Raises:
            UserError: a mistake of the recipe that shows when the stage is built, or too little memory for the smallest trial.
        """
        key = (str(store.root), job.key, unmade(job, store))
        if key not in self.known:
            self.known[key] = self._tried(recipe, job, store)
        return self.known[key]

    def _tried(self, recipe: Recipe, job: Job, store: Store) -> Trial:
        try:
            if self.worker is not None:
                return self.worker.ask(attempt, recipe, store.root, job.stage.name, BRIEF)
            with Worker(torch.get_num_threads()) as alone:
                return alone.ask(attempt, recipe, store.root, job.stage.name)
        except Died as why:
            raise UserError(f"{job.where}: the process that tried a few rows of it was ended by {why}; "
                            "most likely there is too little memory.") from None
