"""What training stages will take: each is tried for a few steps, in a process of its own."""
from __future__ import annotations

from contextlib import nullcontext

from trainwright.core.errors import UserError
from trainwright.core.recipe import Recipe
from trainwright.core.store import Store
from trainwright.life.jobs import Job
from trainwright.planning.probe import Trial, attempt
from trainwright.planning.worker import Died, Worker

BRIEF = 0.2
"""Part of a trial's effort where there are many."""


class Trials:
    """Tries stages, each once.

    Each has a process of its own, since what another leaves behind would be charged to it. Where ``shared``, one process tries
    them all, and more briefly: enough to search with.
    """

    def __init__(self, shared: bool = False) -> None:
        self.worker = Worker() if shared else None
        self.known: dict[tuple[str, str, bool], Trial] = {}

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
        key = (str(store.root), job.key, job.ready(store))
        if key not in self.known:
            self.known[key] = self._tried(recipe, job, store)
        return self.known[key]

    def _tried(self, recipe: Recipe, job: Job, store: Store) -> Trial:
        try:
            with nullcontext(self.worker) if self.worker is not None else Worker() as worker:
                return worker.ask(attempt, recipe, store.root, job.stage.name, BRIEF if worker is self.worker else 1.0)
        except Died as why:
            raise UserError(f"{job.where}: the process that tried a few rows of it was ended by {why}; "
                            "most likely there is too little memory.") from None
