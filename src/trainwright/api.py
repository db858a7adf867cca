"""Everything from Python: load a recipe, plan, run, read an artifact, get a transformers model back."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainwright import families
from trainwright.core import recipe as recipes
from trainwright.core import registry
from trainwright.core.card import Card
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.recipe import Recipe
from trainwright.life.listener import Listener
from trainwright.life.run import run as _run
from trainwright.planning import plan as planning
from trainwright.report import cards, notebook, planned
from trainwright.report.comparison.table import ComparisonTable
from trainwright.storage import store as core

__all__ = ["Artifact", "Plan", "Recipe", "Result", "Store", "Train", "UserError", "comparison", "load",
           "methods", "plan", "run"]


class Artifact(core.Artifact):
    """What a stage made, with its model as an object."""

    def model(self) -> Any:
        """The model: of transformers, or of a function that a recipe named."""
        return families.load(self.path, str(self.path))

    def tokenizer(self) -> Any:
        """The tokenizer, or None where it has none."""
        return families.load_tokenizer(self.path, str(self.path))

    def _repr_html_(self) -> str:
        return notebook.html(cards.artifact_card(self))


class Store(core.Store):
    """A folder of artifacts."""

    def named(self, name: str) -> Artifact:
        """An artifact by its folder's name, or the newest of a stage's name."""
        return Artifact(self.opened(super().named(name)))

    def _repr_html_(self) -> str:
        return notebook.html(cards.store_table(self))


class Plan(planning.Plan):
    """What a recipe will do and what it will cost; to print it shows it."""

    def __str__(self) -> str:
        return notebook.text(planned.render(self))

    def _repr_html_(self) -> str:
        return notebook.html(planned.render(self))


class Result(dict[str, Any]):
    """What a comparison found: what ``result.json`` holds; to print it shows the table."""

    def __str__(self) -> str:
        return notebook.text(ComparisonTable(self))

    def _repr_html_(self) -> str:
        return notebook.html(ComparisonTable(self))


def load(source: str | Path | dict[str, Any], **changes: Any) -> Recipe:
    """A recipe from a TOML file, or from a table such as ``{"stage": [...]}``.

    ``changes`` replace keys: ``load("life.toml", seed=3)``, or those of stages:
    ``load("life.toml", **{"adapt.tokens": 1000})``.
    """
    if isinstance(source, dict):
        return recipes.parse(source, Path("recipe"), changes=changes)
    return recipes.load(source, changes)


def plan(recipe: Recipe, store: str | Path = "store") -> Plan:
    """Who acts where and what it will cost, with every check that is possible before running; print it."""
    made = planning.plan(recipe, Store(Path(store)))
    return Plan(made.recipe, made.stages)


def run(recipe: Recipe, store: str | Path = "store", listener: Listener | None = None) -> dict[str, Artifact]:
    """Run a recipe; returns each stage's artifact by name. Stages that the store has do not run again."""
    return {name: Artifact(made.path) for name, made in _run(recipe, Store(Path(store)), listener).items()}


def comparison(source: str | Path, store: str | Path = "store", *, arms: Sequence[str] = (), aa: bool = False,
               jobs: int = 1, **settings: Any) -> Result:
    """Carry out a comparison; returns what ``result.json`` holds.

    Args:
        source: a TOML file with ``[compare]`` and ``[[arm]]``, or a recipe.
        arms: more arms, as on the command line: ``"lora: lora rank=8"``.
        aa: compare the baseline with itself.
        jobs: runs at a time.
        settings: keys of ``[compare]`` with new values: ``seeds=3, metric="loss/code"``.
    """
    from trainwright.compare import spec as specs
    from trainwright.compare.compare import Comparison
    spec = specs.load(Path(source), settings, [specs.parse_arm(a) for a in arms], None, aa)
    return Result(Comparison(spec, Store(Path(store)), jobs=jobs).run())


def methods() -> dict[str, Card]:
    """Every method that is installed, by name."""
    return registry.cards()
