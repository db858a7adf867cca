"""Tuning with the same effort for every arm: as many trials over its own search space, on seeds and documents
that no final run uses."""
from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainwright.compare.arms import MODEL, ArmRecipes
from trainwright.compare.execute import Record, Unit, Watch, failure, recorded, run_unit, write
from trainwright.compare.failures import FAILURES, reason
from trainwright.compare.spec import Arm, Spec
from trainwright.core import registry
from trainwright.core.errors import UserError, suggest
from trainwright.life.jobs import jobs
from trainwright.storage.store import Store

TRIALS = 4
"""Trials of an arm where neither ``trials`` nor the search space determines them."""
STEP = 3.0
"""Factor between two neighbours of ``around``."""
POINTS = 5
"""Values of a range where one setting is tuned after another."""
FINE = 1025
"""Points of a range from which a Halton sequence chooses."""
FIRST_SEED = 1_000_003
"""Seeds of trials begin here; those of final runs begin at 0."""
Values = dict[str, Any]
"""``{"adamw.lr": 1e-3}``: method and setting, and the value to try; also ``model.initializer_range``."""


def candidates(spec: Spec, recipes: ArmRecipes, arm: Arm) -> list[Values]:
    """What an arm tries: a grid where its axes are lists or a single range, else points of a Halton sequence.

    Raises:
        UserError: a setting that the arm does not have, an empty list, or a range that is none.
    """
    methods, axes = _space(spec, recipes, arm)
    if not axes:
        return []
    lists = [axis for axis in axes.values() if isinstance(axis, list)]
    grid = math.prod(map(len, lists))
    trials = spec.settings.trials or (grid if len(lists) == len(axes) else TRIALS)
    if len(axes) == 1 or (len(lists) == len(axes) and grid == trials):
        points = [_points(k, axis, trials, methods, spec, arm) for k, axis in axes.items()]
        found = [dict(zip(axes, values, strict=True)) for values in itertools.product(*points)]
        return found[:trials]
    from scipy.stats import qmc
    draws = qmc.Halton(len(axes), rng=0).random(trials)
    fine = [axis if isinstance(axis, list) else _points(k, axis, FINE, methods, spec, arm)
            for k, axis in axes.items()]
    return [{k: points[int(u * len(points))] for k, points, u in zip(axes, fine, row, strict=True)}
            for row in draws]


def axes(spec: Spec, recipes: ArmRecipes, arm: Arm) -> dict[str, list[Any]]:
    """Each setting that an arm tunes as a list of values, a range as five of them."""
    methods, found = _space(spec, recipes, arm)
    return {key: _points(key, axis, POINTS, methods, spec, arm) for key, axis in found.items()}


def _space(spec: Spec, recipes: ArmRecipes, arm: Arm) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The methods of the compared stage, and what is tuned of them, as METHOD.SETTING."""
    space = spec.settings.tune if arm.search is None else arm.search
    methods = tunable(recipes.stages(arm, {})[recipes.stage]) if space else []
    return methods, {_place(key, methods, spec, arm): axis for key, axis in space.items()}


def tunable(stage: dict[str, Any]) -> list[dict[str, Any]]:
    """What of a stage can be tuned: its methods, and the model that it makes as if it were one of them."""
    made = stage.get("model")
    return [*stage.get("methods", ()), *([{"use": MODEL, **made}] if isinstance(made, dict) else [])]


def written(methods: Sequence[dict[str, Any]], use: str, name: str) -> Any:
    """A setting of a method as the stage has it, which is its default where it does not say."""
    own = next(m for m in methods if registry.called(m["use"]) == use)
    for part in name.split("."):
        own = own.get(part, _default(use, part)) if isinstance(own, dict) else None
    return own


def _place(key: str, methods: list[dict[str, Any]], spec: Spec, arm: Arm) -> str:
    """``lr`` as ``adamw.lr``: the one method of the arm that has the setting."""
    where = f"{spec.file}: arm {arm.name!r}: tune {key!r}"
    use, dot, name = key.partition(".")
    if use == MODEL and any(m["use"] == MODEL and name in m for m in methods):
        return key
    if not dot or use not in [registry.called(m["use"]) for m in methods]:
        use, dot, name = "", "", key
    uses = [str(m["use"]) for m in methods if not dot or registry.called(m["use"]) == use]
    root = spec.life.parent
    found = [registry.called(one) for one in uses if name.partition(".")[0] in _settings(one, root)]
    if len(found) == 1:
        return f"{found[0]}.{name}"
    if found:
        raise UserError(f"{where}: {' and '.join(found)} have this setting: say {found[0]}.{name}.")
    known = {n for m in methods for n in _settings(str(m["use"]), root)}
    raise UserError(f"{where}: no method that the stage names has this setting{suggest(name, known)}.")


def _settings(use: str, root: Path) -> list[str]:
    card = registry.card_of(use, root)
    return [f[0] for f in card.settings] if card else []


def _points(key: str, axis: Any, trials: int, methods: list[dict[str, Any]], spec: Spec,
            arm: Arm) -> list[Any]:
    """The values along one axis of the search space."""
    where = f"{spec.file}: arm {arm.name!r}: tune {key!r}"
    if isinstance(axis, list) and axis:
        return axis
    if isinstance(axis, dict) and set(axis) <= {"low", "high", "log"} and {"low", "high"} <= set(axis):
        low, high, log = float(axis["low"]), float(axis["high"]), bool(axis.get("log", True))
        if not (low < high and (low > 0 or not log)):
            raise UserError(f"{where}: low must be below high (and above 0 on a logarithmic scale), "
                            f"not {low} and {high}.")
        shares = [i / (trials - 1) if trials > 1 else 0.5 for i in range(trials)]
        return [_round(low * (high / low) ** s if log else low + (high - low) * s) for s in shares]
    if axis == "around":
        own = written(methods, *key.split(".", 1))
        if not isinstance(own, (int, float)) or not own:
            raise UserError(f"{where}: there is no number to search around: give a list or a range.")
        return [_round(own * STEP ** (i - (trials - 1) / 2)) for i in range(trials)]
    raise UserError(f"{where}: write a list, {{ low = 1e-4, high = 1e-2 }} or \"around\", not {axis!r}.")


def _default(use: str, name: str) -> Any:
    card = registry.cards().get(use)                 # None of a file: what its recipe leaves out is not known
    said = next((f[2] for f in card.settings if f[0] == name), "") if card else ""
    try:
        return float(said)
    except ValueError:
        return None


def _round(x: float) -> float:
    return float(f"{x:.4g}")


def check_effort(tried: dict[str, list[Values]], spec: Spec) -> None:
    """Every arm has the same number of trials."""
    counts = {arm: len(values) for arm, values in tried.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{arm} {n}" for arm, n in counts.items())
        raise UserError(f"{spec.file}: compare: arms must have the same tuning effort; trials are {listed}: "
                        "set trials, or give each search space as many points.")


def score(records: list[Record], spec: Spec) -> float | None:
    """A trial's mean over its seeds; None where a run failed."""
    values = [r["numbers"].get(spec.settings.metric) for r in records]
    known = [float(v) for v in values if v is not None and math.isfinite(v)]
    return statistics.mean(known) if len(known) == len(values) else None


def choose(trials: list[dict[str, Any]], spec: Spec) -> dict[str, Any] | None:
    """The best trial, or None where all failed."""
    whole = [t for t in trials if t["metric"] is not None]
    if not whole:
        return None
    return (min if spec.better == "lower" else max)(whole, key=lambda t: t["metric"])


def edges(tried: list[Values], chosen: Values) -> list[str]:
    """Settings whose best value is the least or the greatest tried: the search may have stopped too early."""
    out = []
    for key, value in chosen.items():
        values = [v[key] for v in tried]
        numbers = sorted({x for x in values if isinstance(x, (int, float)) and not isinstance(x, bool)})
        if len(numbers) > 1 and value in (numbers[0], numbers[-1]):
            out.append(key)
    return out


class _Pruned(Exception):
    """A trial that will not be the best."""


class _Halving(Watch):
    """Reports what is measured on the way to a pruner, and ends the run where that says so."""

    def __init__(self, trial: Any, metric: str, watch: Watch) -> None:
        self.trial, self.metric, self.watch = trial, f"eval/{metric}", watch

    def stage(self, name: str, kind: str, state: str, info: dict[str, Any]) -> None:
        self.watch.stage(name, kind, state, info)

    def step(self, stage: str, row: dict[str, float]) -> None:
        self.watch.step(stage, row)
        if self.metric in row and row["step"] < row["steps"]:
            self.trial.report(row[self.metric], int(row["step"]))
            if self.trial.should_prune():
                raise _Pruned


def halve(units: list[Unit], store: Store, spec: Spec, watch: Watch, every: int) -> dict[str, Record]:
    """The trials of one arm in turn, the hopeless ones ended early by Optuna's successive halving."""
    try:
        import optuna
    except ImportError:
        raise UserError("--early-stop needs the package optuna: pip install \"trainwright[tune]\".") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=every, reduction_factor=2)
    study = optuna.create_study(direction="minimize" if spec.better == "lower" else "maximize", pruner=pruner)
    out = {}
    for unit in units:
        trial, record = study.ask(), recorded(unit, store)
        if record is None:
            watch.begin(unit.label)
            try:
                record = run_unit(unit, store.root, False, _Halving(trial, spec.settings.metric, watch))
            except _Pruned:
                record = failure(unit, "ended early: others were better by then", pruned=True)
                for job in jobs(unit.recipe, store):
                    store.tidy(job.stage.name, job.key)            # what it had saved to resume from
                write(store.folder("runs") / f"{unit.key}.json", record)
            except FAILURES as error:
                record = failure(unit, reason(error))
        elif record["curve"] is not None:
            seen = record["curve"]["values"].get(spec.settings.metric, [])
            for step, on_the_way in zip(record["curve"]["step"][:-1], seen, strict=False):
                trial.report(on_the_way, int(step))
        value = record["numbers"].get(spec.settings.metric)
        states = optuna.trial.TrialState
        study.tell(trial, value, state=states.PRUNED if value is None else states.COMPLETE)
        out[unit.key] = record
        watch.done(unit.label, record)
    return out
