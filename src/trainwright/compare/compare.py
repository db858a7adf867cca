"""Is X better than Y, for me, at this budget? How a comparison is carried out, step by step."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from trainwright.compare import coordinate, deciding, rows, tuning
from trainwright.compare import costs as costing
from trainwright.compare.arms import ArmRecipes, Length
from trainwright.compare.execute import Record, Unit, Watch, failure, run_all, with_mean
from trainwright.compare.failures import FAILURES, reason
from trainwright.compare.result import assemble
from trainwright.compare.spec import Arm, Spec
from trainwright.core.errors import UserError
from trainwright.core.files import read_json
from trainwright.core.recipe import Recipe
from trainwright.core.stage import stages
from trainwright.life.jobs import jobs as jobs_of
from trainwright.life.run import run as run_recipe
from trainwright.stages._training import stage_of
from trainwright.storage.store import Store, key_of


@dataclass
class Comparison:
    """A comparison under way; ``failed`` holds why arms were given up, ``counted`` the runs that count.

    Args:
        jobs: runs at a time; 0: as many as an ``estimate`` finds right.
        given: settings that are tuned elsewhere, by arm: there are no trials then.
    """

    spec: Spec
    store: Store
    watch: Watch = field(default_factory=Watch)
    jobs: int = 1
    engine: Literal["native", "ray"] = "native"
    early_stop: bool = False
    keep: bool = False
    given: dict[str, tuning.Values] | None = None
    failed: dict[str, str] = field(default_factory=dict)
    costs: dict[str, costing.Costs] = field(default_factory=dict)
    trials: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    chosen: dict[str, tuning.Values] = field(default_factory=dict)
    lengths: dict[str, Length] = field(default_factory=dict)
    counted: dict[str, list[Record]] = field(default_factory=dict)

    @cached_property
    def recipes(self) -> ArmRecipes:
        return ArmRecipes(self.spec)

    @cached_property
    def candidates(self) -> dict[str, list[tuning.Values]]:
        """What tuning tries for each arm; every arm has as many."""
        if self.given is not None:
            return {a.name: [] for a in self.spec.arms}
        if self.spec.settings.search == "coordinate":
            return {a.name: coordinate.first(self.spec, self.recipes, a) for a in self.spec.arms}
        found = {a.name: tuning.candidates(self.spec, self.recipes, a) for a in self.spec.arms}
        tuning.check_effort(found, self.spec)
        return found

    @property
    def trains(self) -> bool:
        return stages()[self.spec.stage_table(self.recipes.stage)["kind"]].trains

    def alive(self) -> list[Arm]:
        return [a for a in self.spec.arms if a.name not in self.failed]

    # ---- before anything runs -------------------------------------------------------------------------

    def check(self) -> None:
        """Every mistake that can be found before running.

        Raises:
            UserError: in the recipe of an arm, arms that do not differ, a metric that no evaluator makes …
        """
        keys: dict[str, str] = {}
        for arm in self.spec.arms:
            try:
                if self.trains:
                    recipe = self.recipes.bare(arm, self.limit(None))
                else:
                    recipe = self.recipes.run(arm, 0, Length())
                keys[arm.name] = self._job(recipe).key
                if self.trains:
                    self._steps(arm, None)
            except UserError as error:
                raise UserError(f"arm {arm.name!r}: {error}") from None
        same = [(a, b) for a in keys for b in keys if a < b and keys[a] == keys[b]]
        if same and not self.spec.aa:
            raise UserError(f"{self.spec.file}: the arms {same[0][0]!r} and {same[0][1]!r} do not differ; "
                            "to compare an arm with itself, say --aa.")
        self._check_metric()
        if self.early_stop and not self.spec.settings.points:
            raise UserError(f"{self.spec.file}: compare: --early-stop judges trials on the way, and "
                            "points = 0 measures none.")
        if self.early_stop and self.spec.settings.search == "coordinate":
            raise UserError(f"{self.spec.file}: compare: --early-stop ends trials that others beat, and "
                            "search = \"coordinate\" waits for each of them: leave one of the two out.")
        for arm in self.spec.arms:
            for values in self.candidates[arm.name]:
                self._job(self.recipes.run(arm, 0, Length(self.limit(None)), values))

    def _check_metric(self) -> None:
        metric = self.spec.settings.metric
        makers = self._makers(metric, self.spec.arms[:1])
        for name in self.spec.settings.also:
            if name not in rows.COSTS:
                self._makers(name, self.spec.arms)
        if any(self.candidates.values()) and not self.recipes.evaluators("tune"):
            raise UserError(f"{self.spec.file}: compare: {makers[0].name} cannot measure {metric!r} on "
                            "documents kept for tuning; name an evaluator that has a split (held_out), or "
                            "do not tune.")

    def _makers(self, metric: str, arms: Sequence[Arm]) -> list[Any]:
        """The evaluators of these arms that make a number, one at least."""
        judges = [jobs_of(self.recipes.run(arm, 0, Length()), self.store)[-1] for arm in arms]
        evaluators: list[Any] = [m for judge in judges for m in judge.methods]
        makers = [m for m in evaluators if m.may_make(metric)]
        if not makers:
            made = sorted({p for m in evaluators for p in m.makes})
            raise UserError(f"{self.spec.file}: compare: no evaluator makes the metric {metric!r}; "
                            f"they make {', '.join(made) or 'no numbers'}.")
        return makers

    def _job(self, recipe: Recipe) -> Any:
        return next(j for j in jobs_of(recipe, self.store) if j.stage.name == self.recipes.stage)

    def limit(self, costs: costing.Costs | None) -> dict[str, float]:
        """How long the stage trains at this budget; FLOPs and seconds depend on what a step costs."""
        amount, currency = self.spec.amount, self.spec.currency
        if amount is None:
            return {}
        if currency == "tokens":
            return {"tokens": int(amount)}
        if costs is None:
            return {}
        steps = int(amount / (costs.flops if currency == "flops" else costs.seconds))
        if not steps:
            raise UserError(f"the budget of {amount:g} {currency} is too small for one step.")
        return {"steps": steps}

    def _steps(self, arm: Arm, costs: costing.Costs | None) -> int:
        """Steps of a run of this arm at this budget."""
        job = self._job(self.recipes.bare(arm, self.limit(costs)))
        stage = stage_of(job)
        tokens, rows = stage.row_tokens(job), stage.batch_rows(job)
        if stage.steps is not None:
            return stage.steps
        if stage.tokens is None or tokens is None:
            return 0                                       # epochs: known when the corpus is there
        if stage.tokens < rows * tokens:
            raise UserError(f"the budget of {stage.tokens:,} tokens is too small for one step, which takes "
                            f"{rows * tokens:,}.")
        return stage.tokens // (rows * tokens)

    # ---- what runs ------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Carry it out; what ran before does not run again. Returns the result, see ``result.assemble``."""
        self.check()
        self._prepare()
        start = self._start()
        self.lengths = {a.name: Length() for a in self.alive()}
        if self.trains:
            self.lengths = self._measure_costs()
        self._tune()
        self.counted = self._final()
        self._require_baseline()
        return assemble(self, self.counted, start)

    def _require_baseline(self) -> None:
        if self.spec.baseline in self.failed:
            raise UserError(f"the baseline {self.spec.baseline!r} fails, so there is nothing to compare "
                            f"with: {self.failed[self.spec.baseline]}")

    def _prepare(self) -> None:
        """What the arms have in common, and what an arm alone needs before its stage."""
        for arm in self.spec.arms:
            recipe = self.recipes.common(arm)
            if recipe is None:
                continue
            try:
                run_recipe(recipe, self.store, self.watch)
            except FAILURES as error:
                if arm.name == self.spec.baseline or not (arm.stage or arm.at or arm.set):
                    raise
                self.failed[arm.name] = reason(error)

    def _start(self) -> dict[str, float]:
        recipe = self.recipes.start()
        if recipe is None:
            return {}
        judge = run_recipe(recipe, self.store, self.watch)[self.recipes.judge]
        numbers = with_mean(next(iter(judge.figures["numbers"].values())))
        self._require(numbers)
        return numbers

    def _require(self, numbers: dict[str, float]) -> None:
        domains = [d for role in ("new", "old") for d in self.recipes.domains(role)]
        for metric in [self.spec.settings.metric, *(f"loss/{d}" for d in domains)]:
            if metric not in numbers:
                raise UserError(f"{self.spec.file}: compare: {metric!r} was not measured; "
                                f"measured were {', '.join(sorted(numbers))}.")

    def _measure_costs(self) -> dict[str, Length]:
        """FLOPs, seconds and memory of a step of each arm, and what the budget comes to in its steps."""
        for arm in self.alive() if self.spec.settings.reseed else ():
            self._made(arm, self.recipes.bare(arm, self.limit(None)))
        arms = self.alive()
        recipes = {a.name: self.recipes.bare(a, self.limit(None)) for a in arms}
        keys = {name: self._job(recipe).key for name, recipe in recipes.items()}
        if self.spec.aa:
            keys[arms[-1].name] += " again"
        self.watch.phase("costs of a step", len(arms))
        self.costs, failed = costing.measure(recipes, self.spec.baseline, self.recipes.stage, self.store,
                                             keys, lambda arm: self.watch.done(arm, {}))
        self.failed |= failed
        self._require_baseline()
        lengths = {}
        for arm in self.alive():
            cost = self.costs[arm.name]
            steps = self._steps(arm, cost)
            lengths[arm.name] = Length(self.limit(cost), steps, cost.compiled)
        return lengths

    def _made(self, arm: Arm, recipe: Recipe) -> None:
        """Make what the compared stage of a recipe comes from, also where each seed has its own."""
        earlier = tuple(s for s in recipe.stages if s.name != self.recipes.stage)
        before = replace(recipe, stages=earlier)
        try:
            run_recipe(before, self.store, self.watch)
        except FAILURES as error:
            if arm.name == self.spec.baseline:
                raise
            self.failed[arm.name] = reason(error)

    def _unit(self, arm: Arm, seed: int, values: tuning.Values, split: str) -> Unit:
        stage, judge = self.recipes.stage, self.recipes.judge
        curve = split == "test" or self.early_stop
        recipe = self.recipes.run(arm, seed, self.lengths[arm.name], values, split, curve)
        made = {j.stage.name: j for j in jobs_of(recipe, self.store)}
        own = dict.fromkeys(n for n in (*self.spec.settings.reseed, stage, judge) if n in made)
        return Unit(key_of(made[judge].key, stage), arm.name, seed, values, recipe, stage, judge,
                    tuple((name, made[name].key) for name in own))

    def beyond(self) -> list[Unit]:
        """The baseline's runs with seeds beyond those compared: an A/A comparison makes them."""
        arm = next(a for a in self.spec.arms if a.name == self.spec.baseline)
        n, values = self.spec.most, self.chosen.get(arm.name, {})
        return [self._unit(arm, n + i, values, "test") for i in range(n)]

    def _tune(self) -> None:
        if self.given is not None:
            self.chosen = {a.name: self.given[a.name] for a in self.alive() if a.name in self.given}
            return
        units = {a.name: [self.trials_at(a, v) for v in self.candidates[a.name]] for a in self.alive()}
        all_units = [u for trials in units.values() for trial in trials for u in trial]
        if not all_units:
            return
        self.watch.phase("tuning", len(all_units))
        if self.spec.settings.search == "coordinate":
            for one in self.alive():
                if made := coordinate.tune(self, one):
                    self._choose(one.name, made)
            return
        records: dict[str, Record] = {}
        if self.early_stop:
            for arm, trials in units.items():
                listed, every = [u for trial in trials for u in trial], self.recipes.every(self.lengths[arm])
                records |= tuning.halve(listed, self.store, self.spec, self.watch, every)
        else:
            records = run_all(all_units, self.store, self.watch, self.jobs, self.engine)
        for arm, trials in units.items():
            self._choose(arm, [[records[u.key] for u in trial] for trial in trials])

    def trials_at(self, arm: Arm, values: tuning.Values) -> list[Unit]:
        """The runs of one trial, one for each of its seeds."""
        seeds = [tuning.FIRST_SEED + i for i in range(self.spec.settings.tune_seeds)]
        return [self._unit(arm, s, values, "tune") for s in seeds]

    def _choose(self, arm: str, records: list[list[Record]]) -> None:
        self.trials[arm] = [
            {"values": trial[0]["values"], "metric": tuning.score(trial, self.spec),
             "failed": next((r["failed"] for r in trial if r["failed"] and not r["pruned"]), None),
             "pruned": any(r["pruned"] for r in trial)} for trial in records]
        best = tuning.choose(self.trials[arm], self.spec)
        if best is None:
            self.failed[arm] = f"all {len(records)} tuning trials failed: {self.trials[arm][0]['failed']}"
        else:
            self.chosen[arm] = best["values"]

    def _final(self) -> dict[str, list[Record]]:
        """The runs that count, by arm and in the order of their seeds."""
        if self.spec.settings.until_decided:
            return deciding.run(self)
        return self.final(self.alive(), range(self.spec.settings.seeds))

    def final(self, arms: Sequence[Arm], seeds: Iterable[int]) -> dict[str, list[Record]]:
        """Runs that count, of these seeds; arms take turns within a seed, and another begins each time."""
        units: list[Unit] = []
        for seed in seeds:
            for i in range(len(arms)):
                arm = arms[(i + seed) % len(arms)]
                own = seed + (self.spec.most if self.spec.aa and arm is not self.spec.arms[0] else 0)
                units.append(self._unit(arm, own, self.chosen.get(arm.name, {}), "test"))
        self.watch.phase("runs", len(units))
        records = run_all(units, self.store, self.watch, self.jobs, self.engine, self.keep)
        out: dict[str, list[Record]] = {a.name: [] for a in self.spec.arms}
        for unit in sorted(units, key=lambda u: u.seed):
            record = dict(records[unit.key]) | {"arm": unit.arm}
            if not record["failed"]:
                try:
                    self._require(record["numbers"])
                except UserError as error:
                    record = failure(unit, str(error))
            out[unit.arm].append(record)
        for name, listed in out.items():
            why = next((r["failed"] for r in listed if r["failed"]), None)
            if why:
                self.failed[name] = why
        return out


def read(folder: Path) -> dict[str, Any]:
    """The result that a comparison left in its folder."""
    file = folder / "result.json"
    if not file.is_file():
        raise UserError(f"{folder}: there is no result.json: no comparison has ended here.")
    result = read_json(file)
    if not isinstance(result, dict):
        raise UserError(f"{file} is damaged: it holds no result.")
    return result
