"""A repetition: a list of stages run several rounds, each round's artifacts kept."""
from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from trainwright.core.errors import UserError, suggest
from trainwright.core.settings import Count
from trainwright.core.stage import Made, Stage, label_of

if TYPE_CHECKING:
    from trainwright.core.recipe import Names
    from trainwright.life.jobs import Job
    from trainwright.storage.store import Store

PREVIOUS = "previous."


@dataclass(frozen=True)
class Until:
    """When to end before all rounds are done: a metric no longer improves. The best round then counts."""

    stage: str = ""
    """The stage within the round that measures it."""
    metric: str = ""
    """What it measures, such as ``loss/code``."""
    better: Literal["lower", "higher"] = "lower"
    """Which of two values is the better one."""
    patience: Count = 1
    """Rounds without a better value after which it ends."""


@dataclass(frozen=True, kw_only=True)
class RepeatStage(Stage):
    """Rounds of a list of stages, ``[[stage.stage]]``. Stage X of round 2 of NAME is
    ``NAME.2.X``, that of the last round
    ``NAME.X``; within a round, ``previous.X`` is that of the round before. The seed of a round is one
    above that of the last."""

    rounds: int = 2
    """How many rounds at the most."""
    start: dict[str, str] = field(default_factory=dict)
    """What ``previous.X`` means in the first round: a name or path for each such X."""
    until: Until = field(default_factory=Until)
    """When to end early: ``{ stage = "judge", metric = "loss/code" }``; default: after all rounds."""
    stage: tuple[Any, ...] = ()
    """The stages of a round, in order."""

    @property
    def makes(self) -> Made:  # type: ignore[override]
        return self.stage[-1].makes if self.stage else "model"  # type: ignore[no-any-return]

    @property
    def open_ended(self) -> bool:  # type: ignore[override]
        return bool(self.until.metric)

    @classmethod
    def read(cls, settings: dict[str, Any], names: Names, file: str, where: str) -> dict[str, Any]:
        from trainwright.core.recipe import Names, read_stage
        from trainwright.core.stage import stages
        tables = settings.get("stage", ())
        if not isinstance(tables, list) or not tables:
            raise UserError(f"{where}: a repetition needs stages: write [[stage.stage]].")
        inner = [t.get("name") for t in tables if isinstance(t, dict)]
        given = dict(names.known)
        # the round before has all of them, later ones too
        for t in tables:
            if isinstance(t, dict) and isinstance(t.get("name"), str) and t.get("kind") in stages():
                given[f"{PREVIOUS}{t['name']}"] = (stages()[t["kind"]].makes,)
        read: list[Stage] = []
        for number, t in enumerate(tables, 1):
            read.append(
                read_stage(t, f"{where}, stage {number}", where, Names(read, inner, names.root, given))
            )
        for name, given_name in (
            (settings.get("start") or {}).items() if isinstance(settings.get("start"), dict) else ()
        ):
            names.check(str(given_name), f"start.{name}", where)
        return settings | {"stage": tuple(read)}

    def check(self, where: str) -> None:
        if self.inputs or self.methods:
            raise UserError(f"{where}: a repetition has no from and no methods of its own; its stages have.")
        if not 1 <= self.rounds <= 1000:
            raise UserError(f"{where}: rounds must be from 1 to 1000, not {self.rounds}.")
        mine = [s.name for s in self.stage]
        for stage in self.stage:
            if isinstance(stage, RepeatStage):
                raise UserError(
                    f"{where}: {stage.name!r}: a repetition within a repetition cannot be run; unroll one of "
                    f"them."
                )
        if self.until.stage and not self.until.metric:
            raise UserError(
                f"{where}: until names the stage {self.until.stage!r} and no metric: say which of its "
                f"numbers "
                "no longer improves."
            )
        if self.open_ended and self.until.stage not in mine:
            raise UserError(
                f"{where}: until.stage {self.until.stage!r} is no stage of a "
                f"round{suggest(self.until.stage, mine)}."
            )
        for name in {
            n for s in self.stage for names in s.inputs.values() for n in names if n.startswith(PREVIOUS)
        }:
            asked = label_of(name.removeprefix(PREVIOUS))[0]
            if asked not in self.start:
                raise UserError(
                    f"{where}: {name!r} has no meaning in the first round: say start = "
                    f"{{ {asked} = \"NAME\" }}."
                )

    def children(self) -> dict[str, tuple[Made, ...]]:
        out: dict[str, tuple[Made, ...]] = {}
        for stage in self.stage:
            for name, made in ({stage.name: (stage.makes,)} | stage.children()).items():
                out |= {f"{self.name}.{name}": made} | {
                    f"{self.name}.{r}.{name}": made for r in range(1, self.rounds + 1)
                }
        return out

    def unfold(self, done: dict[str, Job], store: Store, seed: int) -> Iterator[Stage]:
        values: list[float] = []
        best = 0
        for number in range(1, self.rounds + 1):
            for stage in self.stage:
                yield self._of_round(stage, number, seed)
            best = number
            if self.open_ended and len(values) == number - 1:
                judge = done[f"{self.name}.{number}.{self.until.stage}"]
                made = store.find(judge.stage.name, judge.key)
                if made is not None:
                    values.append(self._value(judge, made.figures))
                    best = self._best(values)
                    if number - best >= self.until.patience:
                        break
        for stage in self.stage:
            done[f"{self.name}.{stage.name}"] = done[f"{self.name}.{best}.{stage.name}"]
        done[self.name] = done[f"{self.name}.{self.stage[-1].name}"]

    def _of_round(self, stage: Stage, number: int, seed: int) -> Stage:
        """A stage as it stands in a round, under names that hold in the whole recipe."""
        own = {s.name for s in self.stage}

        def meant(name: str) -> str:
            base, label = label_of(name)
            tail = f"@{label}" if label else ""
            if base.startswith(PREVIOUS):
                base = base.removeprefix(PREVIOUS)
                return self.start[base] if number == 1 else f"{self.name}.{number - 1}.{base}{tail}"
            return f"{self.name}.{number}.{base}{tail}" if base in own else name

        inputs = {role: tuple(meant(n) for n in names) for role, names in stage.inputs.items()}
        changes: dict[str, Any] = {"name": f"{self.name}.{number}.{stage.name}", "inputs": inputs}
        if "seed" in {f.name for f in dataclasses.fields(stage)}:
            before: int | None = stage.seed  # type: ignore[attr-defined]
            changes["seed"] = (seed if before is None else before) + number - 1
        if "baseline" in {f.name for f in dataclasses.fields(stage)} and stage.baseline:  # type: ignore[attr-defined]
            changes["baseline"] = meant(stage.baseline)  # type: ignore[attr-defined]
        return dataclasses.replace(stage, **changes)

    def _value(self, judge: Job, figures: dict[str, Any]) -> float:
        found = judge.stage.numbers(figures)
        if self.until.metric not in found:
            raise UserError(f"{judge.where}: until.metric {self.until.metric!r} was not measured"
                            f"{suggest(self.until.metric, found)}.")
        return found[self.until.metric]

    def _best(self, values: list[float]) -> int:
        """The round of the best value; of equal ones the first."""
        sign = 1 if self.until.better == "lower" else -1
        return min(range(len(values)), key=lambda i: sign * values[i]) + 1
