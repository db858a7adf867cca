"""The recipes of a comparison: one for each arm, seed and tuning trial, made of the recipe that the user wrote."""
from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from trainwright.compare.spec import Arm, Spec
from trainwright.core import card, registry
from trainwright.core import recipe as recipes
from trainwright.core.errors import UserError, suggest
from trainwright.core.recipe import Recipe

ALONE = ("Optimizer", "Arithmetic")
"""Kinds of which a stage has one: an arm's takes the place of the recipe's."""
CURVE_TOKENS = 8000
"""Held-out tokens that are measured on the way, for the curve of an arm."""


@dataclass(frozen=True)
class Length:
    """How far a stage goes, and what was decided for all runs of its arm."""

    far: dict[str, float] = field(default_factory=dict)
    """``{"tokens": N}`` or ``{"steps": N}``; empty: as the recipe says."""
    steps: int = 0
    compiled: bool | None = None


@dataclass(frozen=True)
class Variants:
    """Makes the recipes."""

    spec: Spec

    @property
    def stage(self) -> str:
        return self.spec.settings.stage

    @property
    def judge(self) -> str:
        """Name of the stage that measures; no other stage has it."""
        return "judge" if "judge" not in self._base() else f"{self.stage}.judge"

    def run(self, arm: Arm, seed: int, length: Length, values: dict[str, Any] | None = None, split: str = "test",
            curve: bool = True) -> Recipe:
        """One run of an arm, measured at its end on the documents of ``split``, and on the way where a ``curve`` is wanted."""
        stages = self.stages(arm, values or {})
        for name in (self.stage, *self.spec.settings.reseed):
            if stages[name]["kind"] in ("train", "corpus"):
                stages[name]["seed"] = seed
        if stages[self.stage]["kind"] == "train":
            self._limit(stages[self.stage], length, curve)
        judge = {"name": self.judge, "kind": "evaluate", "from": {"models": [self.stage], "data": self.data(stages)},
                 "methods": self.evaluators(split), "seed": seed}
        return self._recipe(stages, [self.stage], [judge])

    def start(self) -> Recipe | None:
        """The model that all arms start from, measured; None where they start from nothing."""
        stages = self._base()
        source = stages[self.stage].get("from", {}).get("model")
        if source is None or source in self.spec.settings.reseed:
            return None
        judge = {"name": self.judge, "kind": "evaluate", "from": {"models": [source], "data": self.data(stages)},
                 "methods": self.evaluators("test")}
        return self._recipe(stages, [source], [judge])

    def common(self, arm: Arm) -> Recipe | None:
        """What an arm needs before its stage and what no seed changes."""
        stages = self.stages(arm, {})
        reseeded = set(self.spec.settings.reseed)
        for name, table in stages.items():                        # whatever comes from a reseeded stage differs by seed too
            if reseeded & set(_sources(table)):
                reseeded.add(name)
        before = [n for n in _ancestors(stages, [self.stage]) if n not in reseeded]
        wanted = [n for n in dict.fromkeys([*before, self.data(stages)]) if n != self.stage and n in stages]
        return self._recipe(stages, wanted, []) if wanted else None

    def shared(self) -> list[str]:
        """Stages of the recipe that are run once, for all seeds."""
        recipe = self.common(self.spec.arms[0])
        return [s.name for s in recipe.stages] if recipe else []

    def bare(self, arm: Arm, far: dict[str, float]) -> Recipe:
        """The arm's stage without anything that is measured: to see what it costs."""
        stages = self.stages(arm, {})
        for name in (self.stage, *self.spec.settings.reseed):
            if stages[name]["kind"] in ("train", "corpus"):
                stages[name]["seed"] = 0
        self._limit(stages[self.stage], Length(far), curve=False)
        return self._recipe(stages, [self.stage], [])

    def stages(self, arm: Arm, values: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The recipe's stages as the arm changes them, by name."""
        stages = self._base()
        for table in arm.stage:
            stages = self._with(stages, copy.deepcopy(table), arm)
        target = self.spec.settings.stage if arm.at is None else arm.at
        if target not in stages:
            raise UserError(f"{self.spec.file}: arm {arm.name!r}: at = {target!r} is no stage{suggest(target, stages)}.")
        self._swap(stages[target], arm)
        whole = {"stage": list(stages.values())}
        for key, value in arm.set.items():
            named = any(key.startswith(f"{n}.") for n in stages)
            recipes.change(whole, key if named else f"{self.stage}.{key}", value, self.spec.file)
        for key, value in values.items():
            recipes.change(whole, f"{self.stage}.methods.{key}", value, self.spec.file)
        return stages

    def data(self, stages: dict[str, dict[str, Any]]) -> str:
        """The corpus on which everything is measured: the recipe's own, not one that an arm put in its place."""
        s = self.spec.settings
        told = s.data or next((t["from"]["data"] for t in self._judges() if "data" in t.get("from", {})), None) \
            or self.spec.stage_table(s.stage).get("from", {}).get("data")
        if told is None:
            raise UserError(f"{self.spec.file}: compare: say data = NAME: the corpus on which all are measured.")
        return str(told)

    def evaluators(self, split: str) -> list[dict[str, Any]]:
        """Evaluators on the documents of a split; those that know no split measure with the final runs only."""
        own = self.spec.settings.methods or next((tuple(t["methods"]) for t in self._judges()), ())
        told = own or ({"use": "held_out"},)
        if split == "test":
            return [dict(m) for m in told]
        return [dict(m) | {"split": split} for m in told if self._has(m, "split")]

    def domains(self, role: str) -> tuple[str, ...]:
        """The domains that are ``new`` or ``old``."""
        own = getattr(self.spec.settings, role)
        return tuple(own or next((tuple(t[role]) for t in self._judges() if t.get(role)), ()))

    # ---- pieces -----------------------------------------------------------------------------------------

    def _judges(self) -> list[dict[str, Any]]:
        return [t for t in self.spec.table["stage"] if t.get("kind") == "evaluate"]

    def _base(self) -> dict[str, dict[str, Any]]:
        return {t["name"]: copy.deepcopy(t) for t in self.spec.table["stage"] if t.get("kind") != "evaluate"}

    def _with(self, stages: dict[str, Any], table: dict[str, Any], arm: Arm) -> dict[str, Any]:
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

    def _swap(self, stage: dict[str, Any], arm: Arm) -> None:
        methods = list(stage.get("methods", ()))
        for name in arm.drop:
            if name not in [m.get("use") for m in methods]:
                raise UserError(f"{self.spec.file}: arm {arm.name!r} drops {name!r}, which the stage has not"
                                f"{suggest(name, [str(m.get('use')) for m in methods])}.")
            methods = [m for m in methods if m.get("use") != name]
        for new in arm.add:
            same = [i for i, m in enumerate(methods) if m.get("use") == new.get("use")][:1]
            out = {*same, *(i for i, m in enumerate(methods) if self._displaces(new, m))}
            at = min(out, default=len(methods))
            methods = [*methods[:at], dict(new), *(m for i, m in enumerate(methods) if i > at and i not in out)]
        stage["methods"] = methods

    def _displaces(self, new: dict[str, Any], old: dict[str, Any]) -> bool:
        """Whether both are of a kind of which a stage has one, and neither leaves parameters to the other."""
        both = set(self._alone(new)) & set(self._alone(old))
        return bool(both) and "params" not in new and "params" not in old

    def _alone(self, method: dict[str, Any]) -> list[str]:
        found = self._card(method)
        return [kind for kind in ALONE if found is not None and found.is_a(kind)]

    def _card(self, method: dict[str, Any]) -> card.Card | None:
        """The card of a method that is installed, or of a user's own file."""
        use = str(method.get("use"))
        if use.endswith(".py"):
            file = (self.spec.life.parent / use).resolve()
            return card.read(file, file.stem, "") if file.is_file() else None
        return registry.cards().get(use)

    def every(self, length: Length) -> int:
        """Steps between two measurements on the way; 0: there are none."""
        points = self.spec.settings.points
        return max(1, -(-length.steps // points)) if points else 0

    def _limit(self, stage: dict[str, Any], length: Length, curve: bool) -> None:
        """The length of a run; what is measured on the way never sees the documents of the final judgement."""
        if length.far:
            for key in ("tokens", "steps", "epochs"):
                stage.pop(key, None)
            stage |= length.far
        if length.compiled is not None:
            stage["compile"] = length.compiled
        stage["methods"] = [m for m in stage.get("methods", ()) if not self._measures(m)]
        stage["eval_every"] = 0
        evaluator = next(iter(self.evaluators("tune")), None) if curve else None
        if evaluator and length.steps and self.every(length):
            fewer = {"tokens": min(int(evaluator.get("tokens", CURVE_TOKENS)), CURVE_TOKENS)} if self._has(evaluator, "tokens") else {}
            stage["methods"].append(evaluator | fewer)
            stage["eval_every"] = self.every(length)

    def _measures(self, method: dict[str, Any]) -> bool:
        found = self._card(method)
        return found is not None and found.is_a("Evaluator")

    def _has(self, method: dict[str, Any], setting: str) -> bool:
        found = self._card(method)
        return found is not None and setting in [f[0] for f in found.fields]

    def _recipe(self, stages: dict[str, dict[str, Any]], goals: list[str], more: list[dict[str, Any]]) -> Recipe:
        wanted = set(goals) | {n for t in more for n in _sources(t)}
        needed = set(_ancestors(stages, sorted(wanted & set(stages)))) | (wanted & set(stages))
        table = {"title": self.spec.title, "seed": self.spec.seed, "stage": [t for n, t in stages.items() if n in needed] + more}
        return recipes.parse(table, self.spec.life)


def _sources(table: dict[str, Any]) -> list[str]:
    return [n for told in table.get("from", {}).values() for n in ([told] if isinstance(told, str) else told)]


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
