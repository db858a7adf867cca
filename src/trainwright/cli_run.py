"""The pages of the command ``run``: one while it runs, one when it is done. Heavy imports wait."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainwright.report.terminal import Terminal

if TYPE_CHECKING:
    from trainwright.core.recipe import Recipe
    from trainwright.life.listener import Listener
    from trainwright.report.progress import Progress
    from trainwright.storage.store import Store


def live(recipe: Recipe, store: Store) -> Listener:
    """The page of a run while it runs."""
    from trainwright.report.live import Live
    page = Live(_place(recipe, store), recipe.title, [stage.name for stage in recipe.stages])
    Terminal().print(f"live page: {page.file}", soft_wrap=True)
    return page


def _place(recipe: Recipe, store: Store) -> Path:
    """The folder of a recipe's pages."""
    from trainwright.core import files
    return files.without_links(store.folder("reports", recipe.file.stem or "recipe"))


def report(recipe: Recipe, store: Store, progress: Progress) -> None:
    """The tables and the page of what has run, including a stage that failed."""
    from trainwright.planning.plan import plan as make_plan
    from trainwright.report import notebook, page
    from trainwright.report.planned import render
    from trainwright.report.progress import evaluation_table
    from trainwright.storage.artifact import Artifact
    planned = make_plan(recipe, store, estimate=False)
    made, states = {name: Artifact(path) for name, path in progress.made.items()}, progress.states
    manifests: list[dict[str, Any]] = [(made[name].manifest if name in made else {"stage": name}) | state
                                       for name, state in states.items()]
    for m in manifests:
        if "numbers" in m.get("figures", {}):
            Terminal().print(evaluation_table(m["figures"]))
    folders = [made[name].path if name in made else Path() for name in states]
    out = page.write(_place(recipe, store), recipe.text, recipe.title, manifests, folders,
                     notebook.text(render(planned)))
    Terminal().print(f"report: {out}", soft_wrap=True)
