"""Every arm against the baseline, metric by metric: differences, intervals, verdicts, and the noise."""
from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainwright.compare import deciding
from trainwright.compare.execute import recorded
from trainwright.compare.sequential import anytime, corrected
from trainwright.compare.statistics import holm, noise_floor, paired, verdict

if TYPE_CHECKING:
    from trainwright.compare.compare import Comparison

COSTS = ("seconds_per_step", "peak_memory_bytes", "trainable_parameters", "state_bytes", "stored_bytes")
COUNTED = ("peak_memory_bytes", "trainable_parameters", "state_bytes", "stored_bytes")
"""Those that are counted and that no seed changes: they are compared as they are."""

Runs = Mapping[str, Sequence[dict[str, Any]]]
"""The runs of each arm in the order of their seeds, each with its ``metrics``."""


def comparisons(c: Comparison, runs: Runs) -> list[dict[str, Any]]:
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
    if c.spec.settings.until_decided:
        said = deciding.decided(c.spec, c.counted, c.failed)
        main = [r for listed in found.values() for r in listed if r["metric"] == c.spec.settings.metric]
        for row, p in zip(main, corrected([r["p"] for r in main], c.spec.settings.margin), strict=True):
            row |= {"verdict": said[row["arm"]], "p_holm": p}
    for name in (n for n in others if n in c.failed):
        found[name] = [_failed(c, name)]
    return [row for name in others for row in found[name]]


def _failed(c: Comparison, name: str) -> dict[str, Any]:
    """The only row of an arm that failed."""
    numbers = ("arm_mean", "baseline_mean", "difference", "low", "high", "p", "p_holm", "detectable")
    return {"arm": name, "baseline": c.spec.baseline, "metric": c.spec.settings.metric,
            "better": c.spec.better, "values": [], "baseline_values": [], "verdict": "failed",
            "reason": c.failed[name], "exact": False, **dict.fromkeys(numbers)}


def _metrics(c: Comparison, runs: Runs) -> list[str]:
    """The metric that decides, then gain and forgetting, then what else was measured, then costs."""
    main = c.spec.settings.metric
    seen = dict.fromkeys(m for listed in runs.values() for r in listed for m in r["metrics"])
    changes = [m for m in seen if m.startswith(("gain/", "forgetting/"))]
    rest = [m for m in seen if m not in (main, *changes, *COSTS) and c.spec.way(m)]
    return [main, *changes, *rest, *(m for m in COSTS if m in seen)]


def _row(c: Comparison, name: str, metric: str, mine: Sequence[dict[str, Any]],
         base: Sequence[dict[str, Any]], arms: int) -> dict[str, Any] | None:
    """One arm's difference in one metric; None where not all runs measured it."""
    pairs = [(a["metrics"].get(metric), b["metrics"].get(metric))
             for a, b in zip(mine, base, strict=not c.spec.settings.until_decided)]
    if any(x is None or y is None or not (math.isfinite(x) and math.isfinite(y)) for x, y in pairs):
        return None
    better = c.spec.way(metric) or "lower"
    if metric == "seconds_per_step":
        cost = c.costs[name]
        pairs = list(zip(cost.rounds, cost.baseline_rounds, strict=True))
    values, theirs = [x - y for x, y in pairs], [y for _, y in pairs]
    row = {"arm": name, "baseline": c.spec.baseline, "metric": metric, "better": better, "values": values,
           "baseline_values": theirs, "arm_mean": statistics.mean(x for x, _ in pairs),
           "baseline_mean": statistics.mean(theirs), "exact": metric in COUNTED}
    if metric in COUNTED:
        d = statistics.mean(values)
        found = "no difference" if not d else "better" if (d < 0) == (better == "lower") else "worse"
        return row | {"difference": d, "low": d, "high": d, "p": None, "p_holm": None, "detectable": None,
                      "verdict": found}
    if c.spec.settings.until_decided and metric != "seconds_per_step":
        seen = anytime(values)
        return row | {"difference": seen.difference, "low": seen.low, "high": seen.high, "p": seen.p,
                      "p_holm": None, "detectable": None, "verdict": ""}
    p = paired(values, arms=max(1, arms))
    return row | {"difference": p.difference, "low": p.low, "high": p.high, "p": p.p, "p_holm": None,
                  "detectable": p.detectable, "verdict": ""}


def noise(c: Comparison, runs: Runs, compared: list[dict[str, Any]]) -> dict[str, Any]:
    """How far two sets of seeds of one arm lie apart: from an A/A comparison where there was one, else from
    the baseline's seeds."""
    out: dict[str, Any] = {}
    measured = {r["metric"] for r in compared if r["verdict"] != "failed" and not r["exact"]}
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


def _others(c: Comparison, runs: Runs) -> list[dict[str, Any]]:
    """What the other side of an A/A comparison measured: in this one, or in an earlier one of this store."""
    if c.spec.aa:
        return [r["metrics"] for r in runs.get(f"{c.spec.baseline} again", [])]
    kept = [recorded(u, c.store) for u in c.beyond()]
    return [r["numbers"] for r in kept if r and not r["failed"]]
