"""A life with a stage of each kind, small enough to run for every value of every setting of a stage."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from tests.conftest import LIFE
from tests.hostile.values import VALUES
from trainwright.core.errors import UserError
from trainwright.core.recipe import Recipe, parse
from trainwright.core.stage import stages
from trainwright.life.run import run
from trainwright.storage.store import Store

TUNE = {
    "name": "tune", "kind": "train", "from": {"model": "previous.tune", "data": "corpus"}, "steps": 1,
    "batch_size": 8, "precision": "fp32", "compile": False, "methods": [{"use": "pack", "length": 32}],
}
MORE: list[dict[str, Any]] = [
    {
        "name": "pruned", "kind": "transform", "from": {"model": "base", "data": "corpus"},
        "methods": [{"use": "magnitude"}],
    },
    {"name": "rounds", "kind": "repeat", "rounds": 2, "start": {"tune": "base"}, "stage": [TUNE]},
]
"""Stages of the kinds that the tiny life lacks."""


class StageCase(NamedTuple):
    """One value in one setting of a kind of stage."""

    kind: str
    path: str
    value: str

    @property
    def key(self) -> str:
        """What a recipe calls the setting."""
        return "from" if self.path == "inputs" else self.path.rpartition(".")[2]

    def recipe(self, folder: Path) -> Recipe:
        """The life up to the stage of that kind, with the value in it."""
        table = life()
        at = next(i for i, s in enumerate(table["stage"]) if s["kind"] == self.kind)
        holder: dict[str, Any] = table["stage"][at]
        group, _, _ = self.path.rpartition(".")
        holder = holder.setdefault(group, {}) if group else holder
        holder[self.key] = VALUES[self.value]
        table["stage"] = [
            s for i, s in enumerate(table["stage"][: at + 1]) if i == at or s["kind"] != "evaluate"
        ]
        return parse(table, folder / "life.toml")


def life() -> dict[str, Any]:
    """The whole of it, as a table."""
    table = tomllib.loads(LIFE)
    table["stage"] += copy.deepcopy(MORE)
    return table


def missing() -> set[str]:
    """Kinds of stage that it lacks."""
    return set(stages()) - {s["kind"] for s in life()["stage"]}


def attempt(recipe: Recipe, store: Path) -> str:
    """Run it; returns what the user is told where it is refused, and nothing where it works."""
    try:
        run(recipe, Store(store))
    except UserError as error:
        return str(error)
    return ""
