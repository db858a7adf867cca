"""The recipes of a comparison: one for each arm, seed and tuning trial, made from the user's recipe."""
from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from trainwright.compare.spec import Arm, Spec
from trainwright.core import recipe as recipes
from trainwright.core import registry
from trainwright.core.card import Card
from trainwright.core.errors import UserError, suggest
from trainwright.core.recipe import Recipe
from trainwright.core.stage import Stage
from trainwright.core.stage import stages as stage_kinds

ALONE = ("Optimizer", "Arithmetic")
"""Kinds of which a stage has one: an arm's takes the place of the recipe's."""
CURVE_TOKENS = 8000
"""Held-out tokens that each measurement during training uses, for the curve of an arm."""
MODEL = "model"
"""Stands for the model that a stage makes, where a setting of it is tuned as one of a method is."""
LENGTHS = ("tokens", "steps", "epochs")
"""Settings of a training stage that say how long it is."""


@dataclass(frozen=True)
class Length:
    """How long a stage trains, and what was decided for all runs of its arm."""

    limit: dict[str, float] = field(default_factory=dict)
    """``{"tokens": N}`` or ``{"steps": N}``; empty: as the recipe says."""
    steps: int = 0
    compiled: bool | None = None


@dataclass(frozen=True)
class ArmRecipes:
    """Makes the recipes of all arms."""

    spec: Spec

    @property
    def stage(self) -> str:
        """Name of the stage that is compared."""
        return self.spec.settings.stage

    @property
    def judge(self) -> str:
        """Name of the stage that measures; no other stage has it."""
        return "judge" if "judge" not in self._base() else f"{self.stage}.judge"

    def run(self, arm: Arm, seed: int, length: Length, values: dict[str, Any] | None = None,
            split: str = "test", curve: bool = True) -> Recipe:
        """One run of an arm, measured on the documents of ``split``; with ``curve`` also on the way."""
        stages = self.stages(arm, values or {})
        self._seed(stages, seed)
        if (kind := _kind(stages[self.stage])) is not None and kind.trains:
            self._limit(stages[self.stage], length, curve)
        judge = self._judge(stages, self.stage, split) | {"seed": seed}
        judge["methods"] = [*judge["methods"], *copy.deepcopy(arm.judge)]
        return self._recipe(stages, [self.stage], [judge])

    def start(self) -> Recipe | None:
        """The model that all arms start from, measured; None where they start from nothing."""
        stages = self._base()
        source = stages[self.stage].get("from", {}).get("model")
        if source is None or source in self.spec.settings.reseed:
            return None
        return self._recipe(stages, [source], [self._judge(stages, source, "test")])

    def common(self, arm: Arm) -> Recipe | None:
        """What an arm needs before its stage and what no seed changes."""
        stages = self.stages(arm, {})
        reseeded = set(self.spec.settings.reseed)
        for name, table in stages.items():           # what comes from a reseeded stage differs by seed too
            if reseeded & set(_sources(table)):
                reseeded.add(name)
        before = [n for n in _ancestors(stages, [self.stage]) if n not in reseeded]
        needed = dict.fromkeys([*before, self.data(stages)])
        wanted = [n for n in needed if n != self.stage and n in stages]
        return self._recipe(stages, wanted, []) if wanted else None

    def shared(self) -> list[str]:
        """Stages of the recipe that run once, for all seeds."""
        recipe = self.common(self.spec.arms[0])
        return [s.name for s in recipe.stages] if recipe else []

    def bare(self, arm: Arm, limit: dict[str, float]) -> Recipe:
        """The arm's stage without any measurement: to see what it costs."""
        stages = self.stages(arm, {})
        self._seed(stages, 0)
        self._limit(stages[self.stage], Length(limit), curve=False)
        return self._recipe(stages, [self.stage], [])

    def stages(self, arm: Arm, values: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The recipe's stages as the arm changes them, by name."""
        stages = self._base()
        for table in arm.stage:
            stages = self._with(stages, copy.deepcopy(table), arm)
        target = self.stage if arm.at is None else arm.at
        if target not in stages:
            near = suggest(target, stages)
            raise UserError(f"{self.spec.file}: arm {arm.name!r}: at = {target!r} is no stage{near}.")
        self._swap(stages[target], arm)
        for table in stages.values():
            self._spare(table)
        whole = {"stage": list(stages.values())}
        for key, value in arm.set.items():
            named = any(key.startswith(f"{n}.") for n in stages)
            recipes.change(whole, key if named else f"{self.stage}.{key}", value, self.spec.file)
        for key, value in values.items():
            recipes.change(whole, f"{self.stage}.{_place(key)}", value, self.spec.file)
        return stages

    def data(self, stages: dict[str, dict[str, Any]]) -> str:
        """The corpus on which everything is measured: the recipe's, also where an arm takes another."""
        name = self.spec.settings.data
        name = name or next((t["from"]["data"] for t in self._judges() if "data" in t.get("from", {})), None)
        name = name or self.spec.stage_table(self.stage).get("from", {}).get("data")
        if name is None:
            raise UserError(f"{self.spec.file}: compare: say data = NAME: the corpus on which all arms are "
                            "measured.")
        return str(name)

    def evaluators(self, split: str) -> list[dict[str, Any]]:
        """Evaluators on the documents of a split; those without a split measure the final runs only."""
        own = self.spec.settings.methods or next((tuple(t["methods"]) for t in self._judges()), ())
        chosen = own or ({"use": "held_out"},)
        if split == "test":
            return [dict(m) for m in chosen]
        return [dict(m) | {"split": split} for m in chosen if self._has(m, "split")]

    def domains(self, role: str) -> tuple[str, ...]:
        """The domains that are ``new`` or ``old``."""
        own = getattr(self.spec.settings, role)
        return tuple(own or next((tuple(t[role]) for t in self._judges() if t.get(role)), ()))

    def every(self, length: Length) -> int:
        """Steps between two measurements on the way; 0: there are none."""
        points = self.spec.settings.points
        return max(1, -(-length.steps // points)) if points else 0

    # ---- stages ---------------------------------------------------------------------------------------

    def _judges(self) -> list[dict[str, Any]]:
        return [t for t in self.spec.table["stage"] if _measures(t)]

    def _base(self) -> dict[str, dict[str, Any]]:
        return {t["name"]: copy.deepcopy(t) for t in self.spec.table["stage"] if not _measures(t)}

    def _judge(self, stages: dict[str, dict[str, Any]], model: str, split: str) -> dict[str, Any]:
        """The stage that measures a model, beside whatever else the recipe's evaluation takes."""
        own = next((t.get("from", {}) for t in self._judges()), {})
        sources = {**own, "models": [model], "data": self.data(stages)}
        return {"name": self.judge, "kind": "evaluate", "from": sources, "methods": self.evaluators(split)}

    def _seed(self, stages: dict[str, dict[str, Any]], seed: int) -> None:
        """Give the compared stage, and those that are run again with each seed, this seed."""
        for name in (self.stage, *self.spec.settings.reseed):
            kind = _kind(stages[name])
            if kind is not None and "seed" in {f.name for f in dataclasses.fields(kind)}:
                stages[name]["seed"] = seed

    def _limit(self, stage: dict[str, Any], length: Length, curve: bool) -> None:
        """Set a run's length, and what is measured on the way, which never sees the final documents."""
        if length.limit:
            for key in LENGTHS:
                stage.pop(key, None)
            stage |= length.limit
        if length.compiled is not None:
            stage["compile"] = length.compiled
        stage["methods"] = [m for m in stage.get("methods", ()) if not self._is_a(m, "Evaluator")]
        stage["eval_every"] = 0
        evaluator = next(iter(self.evaluators("tune")), None) if curve else None
        if evaluator and length.steps and self.every(length):
            if self._has(evaluator, "tokens"):
                evaluator["tokens"] = min(int(evaluator.get("tokens", CURVE_TOKENS)), CURVE_TOKENS)
            stage["methods"].append(evaluator)
            stage["eval_every"] = self.every(length)

    def _with(self, stages: dict[str, Any], table: dict[str, Any], arm: Arm) -> dict[str, Any]:
        """The stages with one of the arm's own, in place of its namesake or before the compared stage."""
        if not isinstance(table.get("name"), str):
            raise UserError(f"{self.spec.file}: arm {arm.name!r}: a stage needs a name.")
        if table["name"] in stages:
            return stages | {table["name"]: table}
        out: dict[str, Any] = {}
        for name, other in stages.items():
            if name == self.stage:
                out[table["name"]] = table
            out[name] = other
        return out

    def _recipe(self, stages: dict[str, dict[str, Any]], goals: list[str],
                more: list[dict[str, Any]]) -> Recipe:
        """The stages that the goals need, and ``more`` behind them."""
        wanted = set(goals) | {n for t in more for n in _sources(t)}
        needed = set(_ancestors(stages, sorted(wanted & set(stages)))) | (wanted & set(stages))
        table = {"title": self.spec.title, "seed": self.spec.seed,
                 "stage": [t for n, t in stages.items() if n in needed] + more}
        return recipes.parse(table, self.spec.life)

    # ---- methods --------------------------------------------------------------------------------------

    def _swap(self, stage: dict[str, Any], arm: Arm) -> None:
        """Drop and add the arm's methods; one that is added takes the place of what it displaces."""
        methods = list(stage.get("methods", ()))
        for name in arm.drop:
            if name not in [m.get("use") for m in methods]:
                near = suggest(name, [str(m.get("use")) for m in methods])
                raise UserError(f"{self.spec.file}: arm {arm.name!r} drops {name!r}, "
                                f"which the stage has not{near}.")
            methods = [m for m in methods if m.get("use") != name]
        for new in arm.add:
            same = [i for i, m in enumerate(methods) if m.get("use") == new.get("use")][:1]
            out = {*same, *(i for i, m in enumerate(methods) if self._displaces(new, m))}
            at = min(out, default=len(methods))
            behind = [m for i, m in enumerate(methods) if i > at and i not in out]
            methods = [*methods[:at], copy.deepcopy(new), *behind]
        stage["methods"] = methods

    def _spare(self, stage: dict[str, Any]) -> None:
        """Leave out roles of ``from`` that no method of this arm asks for, where those of other arms may."""
        kind, where = stage_kinds().get(str(stage.get("kind"))), str(self.spec.file)
        given = stage.get("from")
        if kind is None or not isinstance(given, dict):
            return
        asked = set(kind.roles)
        for method in stage.get("methods", ()):
            if isinstance(method.get("use"), str):
                asked |= set(
                    registry.load(registry.locate(method["use"], self.spec.file.parent, where)).roles
                )
        spare = {role for role in given if role not in asked} & _known_roles()
        stage["from"] = {role: names for role, names in given.items() if role not in spare}

    def _displaces(self, new: dict[str, Any], old: dict[str, Any]) -> bool:
        """Whether both are of a kind of which a stage has one, and neither leaves parameters to the other."""
        both = any(self._is_a(new, kind) and self._is_a(old, kind) for kind in ALONE)
        return both and "params" not in new and "params" not in old

    def _is_a(self, method: dict[str, Any], kind: str) -> bool:
        found = self._card(method)
        return found is not None and found.is_a(kind)

    def _has(self, method: dict[str, Any], setting: str) -> bool:
        found = self._card(method)
        return found is not None and setting in [f[0] for f in found.fields]

    def _card(self, method: dict[str, Any]) -> Card | None:
        """The card of an installed method, or of a user's own file."""
        return registry.card_of(str(method.get("use")), self.spec.life.parent)


def _place(key: str) -> str:
    """Where a tuned setting stands in its stage: ``methods.adamw.lr``, ``model.initializer_range``."""
    return key if key.startswith(f"{MODEL}.") else f"methods.{key}"


def _kind(table: dict[str, Any]) -> type[Stage] | None:
    """The kind of a stage as it is written; None for a wrong one, which parsing the recipe reports."""
    return stage_kinds().get(str(table.get("kind")))


def _measures(table: dict[str, Any]) -> bool:
    """Whether a stage of the recipe makes numbers: a comparison replaces those by its own."""
    kind = _kind(table)
    return kind is not None and kind.makes == "numbers"


def _sources(table: dict[str, Any]) -> list[str]:
    named = table.get("from", {}).values()
    return [n for names in named for n in ([names] if isinstance(names, str) else names)]


def _ancestors(stages: dict[str, dict[str, Any]], goals: list[str]) -> list[str]:
    """Stages that the goals come from, and the goals, in the recipe's order."""
    found: set[str] = set()
    todo = list(goals)
    while todo:
        name = todo.pop()
        if name in stages and name not in found:
            found.add(name)
            todo += _sources(stages[name])
    return [n for n in stages if n in found]


@cache
def _known_roles() -> frozenset[str]:
    """The roles that any installed method asks for."""
    return frozenset(role for name in registry.cards() for role in registry.find(name).roles)
