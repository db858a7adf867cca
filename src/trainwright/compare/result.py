"""What a comparison found: ``result.json``, from which the table and the page are made."""
from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from trainwright.compare import tuning
from trainwright.compare.costs import Costs
from trainwright.compare.execute import Record, recorded
from trainwright.compare.spec import Spec, direction
from trainwright.compare.statistics import holm, noise_floor, paired, verdict
from trainwright.core import hardware
from trainwright.life.run import command
from trainwright.storage.versions import git_commit, versions

if TYPE_CHECKING:
    from trainwright.compare.compare import Comparison

COSTS = ("seconds_per_step", "peak_memory_bytes", "trainable_parameters", "state_bytes", "stored_bytes")
EXACT = ("peak_memory_bytes", "trainable_parameters", "state_bytes", "stored_bytes")
"""Those that no seed changes: they are compared as they are."""
LEDGER = ("steps", "tokens", "trained_tokens", "seconds", "state_bytes", "stored_bytes", "parameters",
          "trainable_parameters")

SAID = {
    "pairing": "A seed gives all arms the same order of the data and the same starting weights; differences "
               "are taken seed by seed, the arm less the baseline.",
    "interval": "Intervals are 95 % paired t intervals of the mean difference, each for its arm alone. With "
                "so few seeds a bootstrap would be too narrow.",
    "verdict": "A verdict needs p < 0.05 after Holm's correction over the arms; without that it is no "
               "difference at this budget.",
    "detectable": "Detectable is the smallest true difference that so many seeds, with the spread they "
                  "showed, would find four times out of five.",
    "seconds": "Seconds of a step were measured with the arm and the baseline taking turns; differences are "
               "paired by turn.",
    "memory": "Peak memory is that of a process of its own, libraries included.",
    "aa": "Both sides are the same arm with different seeds: what differs is noise.",
}
"""How it was done, in sentences for ``result.json`` and the page."""


def assemble(c: Comparison, records: dict[str, list[Record]], start: dict[str, float]) -> dict[str, Any]:
    """The whole result; the keys are described in ``docs/compare.md``."""
    spec, s = c.spec, c.spec.settings
    runs = {arm: [_run(r, start, c) for r in listed] for arm, listed in records.items()}
    comparisons = _comparisons(c, runs)
    seconds = sum(r["figures"].get("wall_seconds") or 0 for of_arm in records.values() for r in of_arm)
    return {"title": spec.title, "recipe": spec.file.name, "stage": s.stage, "metric": s.metric,
            "baseline": spec.baseline, "aa": spec.aa, "seeds": list(range(s.seeds)),
            "budget": {"currency": spec.currency, "amount": spec.amount},
            "new": list(c.recipes.domains("new")), "old": list(c.recipes.domains("old")),
            "tuning": _tuning(c),
            "arms": [_arm(c, a.name, records.get(a.name, []), runs.get(a.name, [])) for a in spec.arms],
            "comparisons": comparisons, "noise": _noise(c, runs, comparisons), "warnings": _warnings(c),
            "said": _sentences(c), "command": command(), "seconds": seconds,
            "date": datetime.now(UTC).isoformat(timespec="seconds"), "hardware": hardware.describe(),
            "versions": versions(), "git": git_commit(spec.life.parent), "seed": spec.seed}


def _run(record: Record, start: dict[str, float], c: Comparison) -> dict[str, Any]:
    """One run's numbers: what was measured, what was gained and forgotten, what it cost."""
    numbers = dict(record["numbers"])
    for role, word, sign in (("new", "gain", 1), ("old", "forgetting", -1)):
        for domain in c.recipes.domains(role):
            loss = f"loss/{domain}"
            if loss in start and loss in numbers:
                numbers[f"{word}/{domain}"] = sign * (start[loss] - numbers[loss])
    cost = c.costs.get(record["arm"])
    figures = record["figures"]
    if cost is not None and figures:
        numbers |= {"seconds_per_step": cost.seconds, "peak_memory_bytes": cost.peak_memory_bytes}
    counted = ("trainable_parameters", "state_bytes", "stored_bytes")
    numbers |= {n: figures[n] for n in counted if figures.get(n) is not None}
    return {"metrics": numbers} | {k: record[k] for k in ("seed", "hashes", "failed")}


def _arm(c: Comparison, name: str, records: list[Record], runs: list[dict[str, Any]]) -> dict[str, Any]:
    arm = next(a for a in c.spec.arms if a.name == name)
    whole = [r["figures"] for r in records if r["figures"]]
    ledger: dict[str, float | None] = {k: _mean([f.get(k) for f in whole]) for k in LEDGER}
    cost = c.costs.get(name)
    if cost is not None:
        steps = ledger["steps"] or 0
        ledger |= {"flops": cost.flops * steps, "seconds_per_step": cost.seconds,
                   "peak_memory_bytes": cost.peak_memory_bytes}
    trials = c.trials.get(name, [])
    chosen = c.chosen.get(name, {})
    stages = c.recipes.stages(arm, chosen)
    return {"name": name, "stage": stages[c.recipes.stage], "changes": _changes(arm),
            "failed": c.failed.get(name), "parameters": ledger["parameters"],
            "trainable": ledger["trainable_parameters"], "trials": trials, "chosen": chosen,
            "at_edge": tuning.edges([t["values"] for t in trials], chosen), "ledger": ledger, "runs": runs,
            "curve": _curve(records, cost, c.spec),
            "selected": next((r["selected"] for r in records if r.get("selected")), {})}


def _changes(arm: Any) -> str:
    """What an arm does differently, in a line."""
    def words(m: dict[str, Any]) -> str:
        settings = ", ".join(f"{k} = {v}" for k, v in m.items() if k != "use")
        return str(m["use"]) + (f" ({settings})" if settings else "")
    parts = [f"with {words(m)}" for m in arm.add] + [f"without {d}" for d in arm.drop]
    parts += [f"{k} = {v}" for k, v in arm.set.items()] + [f"stage {t['name']}" for t in arm.stage]
    return "; ".join(parts) or "the recipe as it is"


def _curve(records: list[Record], cost: Costs | None, spec: Spec) -> dict[str, Any] | None:
    """The metric on the way, one row for each seed, over tokens, FLOPs and seconds."""
    metric = spec.settings.metric
    curves = [r["curve"] for r in records if r["curve"] and metric in r["curve"]["values"]]
    if not curves or len({len(x["tokens"]) for x in curves}) > 1:
        return None
    if cost:
        flops, seconds = ([s * each for s in curves[0]["step"]] for each in (cost.flops, cost.seconds))
    else:
        flops = curves[0]["flops"]
        seconds = [statistics.mean(x) for x in zip(*(one["seconds"] for one in curves), strict=True)]
    return {"name": metric, "split": "tune", "tokens": curves[0]["tokens"], "flops": flops,
            "seconds": seconds, "values": [one["values"][metric] for one in curves]}


def _comparisons(c: Comparison, runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Every other arm against the baseline by metric; Holm's correction is over the arms of a metric."""
    base = runs[c.spec.baseline]
    others = [a.name for a in c.spec.arms if a.name != c.spec.baseline]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in others}
    alive = [n for n in others if n not in c.failed]
    for metric in _metrics(c, runs):
        tried = (_row(c, name, metric, runs[name], base, len(alive)) for name in alive)
        rows = [row for row in tried if row is not None]
        tested = [r for r in rows if not r["exact"]]
        for row, adjusted in zip(tested, holm([r["p"] for r in tested]), strict=True):
            row |= {"p_holm": adjusted, "verdict": verdict(row["difference"], adjusted, row["better"])}
        for row in rows:
            found[row["arm"]].append(row)
    for name in (n for n in others if n in c.failed):
        found[name] = [_failed(c, name)]
    return [row for name in others for row in found[name]]


def _failed(c: Comparison, name: str) -> dict[str, Any]:
    """The only row of an arm that failed."""
    numbers = ("arm_mean", "baseline_mean", "difference", "low", "high", "p", "p_holm", "detectable")
    return {"arm": name, "baseline": c.spec.baseline, "metric": c.spec.settings.metric,
            "better": c.spec.better, "values": [], "verdict": "failed", "reason": c.failed[name],
            "exact": False, **dict.fromkeys(numbers)}


def _metrics(c: Comparison, runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The metric that decides, then gain and forgetting, then what else was measured, then costs."""
    main = c.spec.settings.metric
    seen = dict.fromkeys(m for listed in runs.values() for r in listed for m in r["metrics"])
    changes = [m for m in seen if m.startswith(("gain/", "forgetting/"))]
    rest = [m for m in seen if m not in (main, *changes, *COSTS) and direction(m)]
    return [main, *changes, *rest, *(m for m in COSTS if m in seen)]


def _row(c: Comparison, name: str, metric: str, mine: Sequence[dict[str, Any]],
         base: Sequence[dict[str, Any]], arms: int) -> dict[str, Any] | None:
    """One arm's difference in one metric; None where not all runs measured it."""
    pairs = [(a["metrics"].get(metric), b["metrics"].get(metric)) for a, b in zip(mine, base, strict=True)]
    if any(x is None or y is None or not (math.isfinite(x) and math.isfinite(y)) for x, y in pairs):
        return None
    better = c.spec.better if metric == c.spec.settings.metric else direction(metric) or "lower"
    if metric == "seconds_per_step":
        cost = c.costs[name]
        pairs = list(zip(cost.rounds, cost.baseline_rounds, strict=True))
    values = [x - y for x, y in pairs]
    row = {"arm": name, "baseline": c.spec.baseline, "metric": metric, "better": better, "values": values,
           "arm_mean": statistics.mean(x for x, _ in pairs),
           "baseline_mean": statistics.mean(y for _, y in pairs), "exact": metric in EXACT}
    if metric in EXACT:
        d = statistics.mean(values)
        found = "no difference" if not d else "better" if (d < 0) == (better == "lower") else "worse"
        return row | {"difference": d, "low": d, "high": d, "p": None, "p_holm": None, "detectable": None,
                      "verdict": found}
    p = paired(values, arms=max(1, arms))
    return row | {"difference": p.difference, "low": p.low, "high": p.high, "p": p.p, "p_holm": None,
                  "detectable": p.detectable, "verdict": ""}


def _noise(c: Comparison, runs: dict[str, list[dict[str, Any]]],
           comparisons: list[dict[str, Any]]) -> dict[str, Any]:
    """How far two sets of seeds of one arm lie apart: from an A/A comparison where there was one, else from
    the baseline's seeds."""
    out: dict[str, Any] = {}
    measured = {r["metric"] for r in comparisons if r["verdict"] != "failed" and not r["exact"]}
    others = _others(c, runs)
    for metric in sorted(measured - {"seconds_per_step"}):
        values = [r["metrics"][metric] for r in runs[c.spec.baseline] if metric in r["metrics"]]
        again = [float(x) for numbers in others if (x := numbers.get(metric)) is not None]
        if len(values) > 1:
            out[metric] = {"half_width": noise_floor(values + again),
                           "source": "A/A" if again else "baseline over its seeds"}
            if again:                              # more values, but of sets as large as those compared
                out[metric]["half_width"] *= math.sqrt(len(values + again) / len(values))
    return out


def _others(c: Comparison, runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What the other side of an A/A comparison measured: in this one, or in an earlier one of this store."""
    if c.spec.aa:
        return [r["metrics"] for r in runs.get(f"{c.spec.baseline} again", [])]
    kept = [recorded(u, c.store) for u in c.beyond()]
    return [r["numbers"] for r in kept if r and not r["failed"]]


def _tuning(c: Comparison) -> dict[str, Any] | None:
    if not any(c.trials.values()):
        return None
    s = c.spec.settings
    seeds = [tuning.FIRST_SEED + i for i in range(s.tune_seeds)]
    return {"trials": max(len(t) for t in c.trials.values()), "seeds": seeds, "split": "tune",
            "metric": s.metric, "early_stop": c.early_stop}


def _warnings(c: Comparison) -> list[str]:
    out = []
    for name, trials in c.trials.items():
        for key in tuning.edges([t["values"] for t in trials], c.chosen.get(name, {})):
            best = c.chosen[name][key]
            out.append(f"{name}: the best {key} ({best:g}) lies at the edge of what was tried; search "
                       "further there.")
        bad = sum(t["metric"] is None and not t["pruned"] for t in trials)
        if bad:
            out.append(f"{name}: {bad} of {len(trials)} tuning trials failed.")
    if c.spec.currency == "seconds":
        out.append("Seconds were turned into steps once, from the measured seconds of a step; they are "
                   "those of this machine.")
    return out


def _sentences(c: Comparison) -> dict[str, str]:
    """How it was done, in sentences."""
    s = c.spec.settings
    words = {k: v for k, v in SAID.items() if k != "aa" or c.spec.aa}
    if c.spec.aa:
        words.pop("pairing")
    words["budget"] = ("All arms go as far as the recipe says." if c.spec.amount is None else
                       f"Every run of every arm has the same budget of {c.spec.amount:g} {c.spec.currency}.")
    words["tuning"] = "Nothing was tuned: all arms ran with the settings as written."
    if c.trials:
        words["tuning"] = ("Each arm had the same number of tuning trials, on seeds and on held-out "
                           "documents that the final runs are not measured with; what was best there was "
                           f"run with {s.seeds} other seeds.")
    fixed = [n for n in c.recipes.shared() if n not in s.reseed]
    before = f"made once, for all runs: {', '.join(fixed)}" if fixed else "nothing came before it"
    words["conditional"] = f"The intervals cover the seeds of the compared stage only; {before}."
    return words


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.mean(known) if known else None
