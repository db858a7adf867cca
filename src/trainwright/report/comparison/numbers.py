"""The result of a comparison as tables, plots and sentences read it: arms, metrics, differences, costs."""
from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainwright.report.numbers import NONE, duration, interval, quantity, ratio, short, signed, unit_kind

FEW = 6
"""Arms beside the baseline that one plot and one list of sentences can hold; more are shown in groups."""
LETTERS = 20
"""Letters of a name in a plot; a longer one loses its middle."""
WORDS = {"seconds_per_step": "time per step", "peak_memory_bytes": "peak memory",
         "trainable_parameters": "trained parameters", "stored_bytes": "stored size",
         "state_bytes": "optimizer state", "flops": "FLOPs", "seconds": "training time"}
UNITS = {"loss": "nats per token", "gain": "nats per token", "forgetting": "nats per token"}


def words(metric: str) -> str:
    """A metric in words: ``loss on code``, ``mean loss``, ``forgetting of prose``, ``peak memory``."""
    name, _, domain = metric.partition("/")
    spoken = WORDS.get(name, name.replace("_", " "))
    if domain == "mean":
        return f"mean {spoken}"
    return spoken + (f" {'of' if name == 'forgetting' else 'on'} {domain}" if domain else "")


def unit_words(metric: str) -> str:
    """The unit that stands behind a comma in headings: ``nats per token``, or nothing."""
    return UNITS.get(metric.partition("/")[0], "")


@dataclass(frozen=True)
class Arm:
    """One arm: its entry in ``result.json``, and its comparisons with the baseline by metric."""

    json: dict[str, Any]
    compared: dict[str, dict[str, Any]]
    colour: int
    """Of its marks in all plots; the baseline has -1, the colour of ink."""
    caveats: tuple[str, ...] = ()
    """What has to be said beside its verdict."""

    @property
    def name(self) -> str:
        return str(self.json["name"])

    @property
    def failed(self) -> str:
        """Why it failed, or nothing."""
        return str(self.json.get("failed") or "")

    @property
    def baseline(self) -> bool:
        return self.colour < 0

    @property
    def ledger(self) -> dict[str, Any]:
        return self.json.get("ledger") or {}

    @property
    def trials(self) -> list[dict[str, Any]]:
        """Its tuning trials."""
        return self.json.get("trials") or []

    @property
    def runs(self) -> list[dict[str, Any]]:
        """The runs that did not fail."""
        return [r for r in self.json.get("runs") or [] if not r.get("failed")]

    @property
    def measured(self) -> list[str]:
        """All that its runs measured."""
        return list(dict.fromkeys(m for r in self.json.get("runs") or [] for m in r.get("metrics") or {}))

    def mean(self, metric: str) -> float | None:
        """Its mean over the seeds; None where it was not measured."""
        found = (self.compared.get(metric) or {}).get("arm_mean")
        if found is None:
            seen = [x for r in self.runs if (x := r["metrics"].get(metric)) is not None]
            found = statistics.fmean(seen) if seen else self.ledger.get(metric)
        return found

    def verdict(self, metric: str) -> str:
        """``better``, ``worse``, ``no difference``, ``failed``, or nothing where there is no comparison."""
        return str((self.compared.get(metric) or {}).get("verdict") or "")

    def standing(self, metric: str) -> str:
        """The word in the column of verdicts."""
        if self.baseline:
            return "baseline"
        return self.verdict(metric) or ("failed" if self.failed else "not measured")

    def difference(self, metric: str) -> tuple[str, str]:
        """Its difference from the baseline and the interval, as texts."""
        one = self.compared.get(metric) or {}
        return interval(metric, one.get("difference"), one.get("low"), one.get("high"))

    def detectable(self, metric: str) -> str:
        """The smallest true difference that the seeds would find, with the decimals of the difference."""
        one = self.compared.get(metric) or {}
        found = one.get("detectable")
        if found is None:
            return NONE
        half = (one["high"] - one["low"]) / 2
        return interval(metric, found, found - half, found + half, sign=False)[0]


@dataclass(frozen=True)
class Result:
    """A whole comparison: what ``result.json`` holds, and its arms."""

    json: dict[str, Any]
    arms: tuple[Arm, ...]

    @property
    def metric(self) -> str:
        """The metric that decides."""
        return str(self.json["metric"])

    @property
    def lower(self) -> bool:
        """Whether less of that metric is better."""
        decisive = (a.compared[self.metric] for a in self.arms if self.metric in a.compared)
        return next((one["better"] == "lower" for one in decisive), True)

    @property
    def baseline(self) -> Arm:
        return next(a for a in self.arms if a.baseline)

    @property
    def others(self) -> list[Arm]:
        return [a for a in self.arms if not a.baseline]

    @property
    def alive(self) -> list[Arm]:
        """Arms with a difference in the metric that decides."""
        return [a for a in self.others if (a.compared.get(self.metric) or {}).get("difference") is not None]

    @property
    def metrics(self) -> list[str]:
        """All that was compared, beginning with the metric that decides."""
        return list(dict.fromkeys([self.metric, *(m for a in self.others for m in a.compared)]))

    def changes(self, kind: str) -> list[str]:
        """Metrics such as ``gain/code``, for the domains that the comparison names."""
        domains = self.json.get("new" if kind == "gain" else "old") or []
        return [m for d in domains if any(a.mean(m := f"{kind}/{d}") is not None for a in self.arms)]

    @property
    def budget(self) -> str:
        """What every arm had: ``200 k tokens``; nothing where the recipe decides."""
        currency, amount = self.json["budget"]["currency"], self.json["budget"].get("amount")
        if currency == "recipe" or amount is None:
            return ""
        return {"tokens": f"{short(amount)} tokens", "flops": f"{short(amount)} FLOPs",
                "seconds": f"{duration(amount)} of training"}.get(currency, f"{short(amount)} {currency}")


def read(result: dict[str, Any]) -> Result:
    """The comparison of ``result.json``; arms in its order, those compared coloured in turn."""
    colours = iter(range(len(result["arms"])))
    by_arm: dict[str, dict[str, dict[str, Any]]] = {}
    for one in result.get("comparisons") or []:
        by_arm.setdefault(one["arm"], {})[one["metric"]] = one
    return Result(result, tuple(
        Arm(a, by_arm.get(a["name"], {}), -1 if a["name"] == result["baseline"] else next(colours),
            tuple((result.get("caveats") or {}).get(a["name"], ())))
        for a in result["arms"]))


def shorten(names: Sequence[str], most: int = LETTERS) -> list[str]:
    """Names of at most so many letters: longer ones lose their middle, and equal ones get a number."""
    cut = [n if len(n) <= most else f"{n[:(most + 1) // 2 - 1]}…{n[-(most // 2):]}" for n in names]
    return [s if cut.count(s) == 1 else f"{s[:most - 3]}… {cut[:i + 1].count(s)}" for i, s in enumerate(cut)]


def cell(c: Result, a: Arm, metric: str) -> str:
    """The number in a table; a cost has its factor of the baseline's behind it."""
    mine = a.mean(metric)
    if mine is None:
        return NONE
    change = metric.partition("/")[0] in ("gain", "forgetting")
    number = signed(mine) if change else quantity(metric, mine)
    times = "" if a.baseline or not unit_kind(metric) else ratio(mine, c.baseline.mean(metric))
    return f"{number} {times}".strip()


def shown(c: Result, metrics: Sequence[str]) -> list[str]:
    """Those of the metrics that any arm has a number of."""
    return [m for m in metrics if any(a.mean(m) is not None for a in c.arms)]
