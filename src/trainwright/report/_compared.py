"""The result of a comparison as its table and its page read it, and the sentences that tell it."""
from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from trainwright.report.numbers import NONE, duration, interval, quantity, ratio, short, signed, unit_kind

FEW = 6
"""Arms beside the baseline that one plot and one list of sentences can hold; above that they are shown in groups."""
LETTERS = 20
"""Letters of a name in a plot; a longer one loses its middle."""
WORDS = {"seconds_per_step": "time per step", "peak_memory_bytes": "peak memory", "trainable_parameters": "trained parameters",
         "stored_bytes": "stored size", "state_bytes": "optimizer state", "flops": "FLOPs", "seconds": "training time"}
COSTS = ("seconds_per_step", "peak_memory_bytes", "stored_bytes")
"""Of those in ``WORDS``, what the headline tells."""
UNITS = {"loss": "nats per token", "gain": "nats per token", "forgetting": "nats per token"}
FALSE_ALARM = ("A difference was found where there is none. Chance does that in one of twenty such comparisons; if it stays with "
               "other seeds, the runs differ in more than their seeds.")
SPEAKING = 0.05
"""Share by which a cost must differ to be told in the headline; the table has them all."""


def words(metric: str) -> str:
    """A metric as people say it: ``loss on code``, ``mean loss``, ``forgetting of prose``, ``peak memory``."""
    name, _, domain = metric.partition("/")
    said = WORDS.get(name, name.replace("_", " "))
    if domain == "mean":
        return f"mean {said}"
    return said + (f" {'of' if name == 'forgetting' else 'on'} {domain}" if domain else "")


def unit_words(metric: str) -> str:
    """The unit that stands behind a comma in headings: ``nats per token``, or nothing."""
    return UNITS.get(metric.partition("/")[0], "")


@dataclass(frozen=True)
class Arm:
    """One arm: what ``result.json`` tells of it, and its comparisons with the baseline."""

    told: dict[str, Any]
    compared: dict[str, dict[str, Any]]
    colour: int
    """Of its marks in all plots; the baseline has -1, the colour of ink."""

    @property
    def name(self) -> str:
        return str(self.told["name"])

    @property
    def failed(self) -> str:
        """Why it failed, or nothing."""
        return str(self.told.get("failed") or "")

    @property
    def baseline(self) -> bool:
        return self.colour < 0

    @property
    def ledger(self) -> dict[str, Any]:
        return self.told.get("ledger") or {}

    @property
    def runs(self) -> list[dict[str, Any]]:
        return [r for r in self.told.get("runs") or [] if not r.get("failed")]

    @property
    def measured(self) -> list[str]:
        """All that its runs measured."""
        return list(dict.fromkeys(m for r in self.told.get("runs") or [] for m in r.get("metrics") or {}))

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
        return "baseline" if self.baseline else self.verdict(metric) or ("failed" if self.failed else "not measured")

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
class Compared:
    """A whole comparison."""

    told: dict[str, Any]
    arms: tuple[Arm, ...]

    @property
    def metric(self) -> str:
        return str(self.told["metric"])

    @property
    def lower(self) -> bool:
        """Whether less of the main metric is better."""
        return next((c["better"] == "lower" for a in self.arms for m, c in a.compared.items() if m == self.metric), True)

    @property
    def baseline(self) -> Arm:
        return next(a for a in self.arms if a.baseline)

    @property
    def others(self) -> list[Arm]:
        return [a for a in self.arms if not a.baseline]

    @property
    def alive(self) -> list[Arm]:
        """Arms with a difference in the main metric."""
        return [a for a in self.others if (a.compared.get(self.metric) or {}).get("difference") is not None]

    @property
    def metrics(self) -> list[str]:
        """All that was compared, the main metric first."""
        return list(dict.fromkeys([self.metric, *(m for a in self.others for m in a.compared)]))

    def changes(self, kind: str) -> list[str]:
        """Metrics such as ``gain/code``, for the domains that the comparison names."""
        domains = self.told.get("new" if kind == "gain" else "old") or []
        return [m for d in domains if any(a.mean(m := f"{kind}/{d}") is not None for a in self.arms)]

    @property
    def budget(self) -> str:
        """What every arm had: ``200 k tokens``; nothing where the recipe says."""
        currency, amount = self.told["budget"]["currency"], self.told["budget"].get("amount")
        if currency == "recipe" or amount is None:
            return ""
        return {"tokens": f"{short(amount)} tokens", "flops": f"{short(amount)} FLOPs",
                "seconds": f"{duration(amount)} of training"}.get(currency, f"{short(amount)} {currency}")


def read(result: dict[str, Any]) -> Compared:
    """The comparison of ``result.json``; arms in its order, each with the colour of its place among those compared."""
    colours = iter(range(len(result["arms"])))
    by_arm: dict[str, dict[str, dict[str, Any]]] = {}
    for one in result.get("comparisons") or []:
        by_arm.setdefault(one["arm"], {})[one["metric"]] = one
    return Compared(result, tuple(
        Arm(a, by_arm.get(a["name"], {}), -1 if a["name"] == result["baseline"] else next(colours)) for a in result["arms"]))


def shorten(names: Sequence[str], most: int = LETTERS) -> list[str]:
    """Names of at most so many letters: the middle of a longer one is left out, and equal ones get a number."""
    short = [n if len(n) <= most else f"{n[:(most + 1) // 2 - 1]}…{n[-(most // 2):]}" for n in names]
    return [s if short.count(s) == 1 else f"{s[:most - 3]}… {short[:i + 1].count(s)}" for i, s in enumerate(short)]


# ---- sentences -----------------------------------------------------------------------------------------


def lead(c: Compared) -> str:
    """What was compared, with what effort."""
    told, tuning = c.told, c.told.get("tuning")
    who = "The same arm twice" if told.get("aa") else f"{len(c.arms)} arms"
    budget = f", {c.budget} a run" if c.budget else ", as far as the recipe says"
    effort = f", after {tuning['trials']} tuning trials" if tuning else ""
    return (f"{who} in the stage {told['stage']}, each with {len(told['seeds'])} seeds{budget}{effort}. What decides is the "
            f"{words(c.metric)}{', in ' + unit_words(c.metric) if unit_words(c.metric) else ''}; "
            f"{'lower' if c.lower else 'higher'} is better.")


def story(c: Compared) -> list[tuple[str, Markup]]:
    """The answer, arm by arm, failures first; in groups where there are many arms. Each with the class of its list item."""
    told = [("failure", Markup("<strong>{}</strong> failed: {}").format(a.name, a.failed)) for a in c.arms if a.failed]
    told += [("failure", Markup("<strong>{}</strong> was not measured in {}.").format(a.name, words(c.metric)))
             for a in c.others if not a.failed and a not in c.alive]
    if len(c.alive) > FEW:
        return told + [("", line) for line in _groups(c)]
    for a in c.alive:
        sentences = [_answer(c, a), *(_change(c, a, m) for m in [*c.changes("gain"), *c.changes("forgetting")])]
        costs = _costs(c, a)
        tail = Markup(' <span class="cost">{}</span>').format(costs) if costs else Markup("")
        told.append(("", Markup(" ").join(s for s in sentences if s) + tail))
    if c.told.get("aa") and any(a.verdict(c.metric) in ("better", "worse") for a in c.alive):
        told.append(("failure", Markup(FALSE_ALARM)))
    return told


def _answer(c: Compared, a: Arm) -> Markup:
    one = a.compared[c.metric]
    if one["verdict"] not in ("better", "worse"):
        power = f" A true one of {a.detectable(c.metric)} would be found four times in five."
        return Markup("<strong>{}</strong>: <em>no difference</em> from {} at this budget in {} ({}).{}").format(
            a.name, c.baseline.name, words(c.metric), " ".join(a.difference(c.metric)).strip(),
            power if one.get("detectable") else "")
    by = interval(c.metric, *_upright(one), sign=False)
    way = "lower" if one["difference"] < 0 else "higher"
    return Markup('<strong>{}</strong> is <span class="{}">{}</span> than {}: its {} is {} by {}.').format(
        a.name, "good" if one["verdict"] == "better" else "bad", one["verdict"], c.baseline.name, words(c.metric), way,
        " ".join(by).strip())


def _upright(one: dict[str, Any]) -> tuple[float, float, float]:
    """Size of a difference and its interval, for a sentence that says the direction in words."""
    x, low, high = one["difference"], one["low"], one["high"]
    return (x, low, high) if x >= 0 else (-x, -high, -low)


def _change(c: Compared, a: Arm, metric: str) -> Markup:
    """Gain or forgetting, where it was told apart from the baseline's and is not the main metric in other words."""
    kind, _, domain = metric.partition("/")
    one = a.compared.get(metric) or {}
    if metric == c.metric or (kind == "gain" and c.metric.partition("/")[2] == domain):
        return Markup("")
    if one.get("verdict") not in ("better", "worse"):
        return Markup("")
    more = one["difference"] > 0
    verb = f"{'learns' if kind == 'gain' else 'forgets'} {'more' if more else 'less'} of"
    return Markup('It <span class="{}">{}</span> {}: {} instead of {}.').format(
        "good" if one["verdict"] == "better" else "bad", verb, domain, signed(one["arm_mean"]), signed(one["baseline_mean"]))


def _costs(c: Compared, a: Arm) -> str:
    """What a step and a copy cost, as factors of the baseline's."""
    said = []
    for metric in COSTS:
        mine, base = a.mean(metric), c.baseline.mean(metric)
        if mine and base and abs(mine / base - 1) >= SPEAKING:
            said.append(f"{words(metric)} {ratio(mine, base)}")
    return ", ".join(said)


def _groups(c: Compared) -> list[Markup]:
    """The names of all better arms, of all worse ones, and of those without a difference, best first."""
    lines = []
    for verdict, css, text in (("better", "good", "better than"), ("no difference", "", "without a difference from"),
                               ("worse", "bad", "worse than")):
        found = sorted((a for a in c.alive if a.verdict(c.metric) == verdict),
                       key=lambda a: a.compared[c.metric]["difference"] * (1 if c.lower else -1))
        names = [Markup("<strong>{}</strong> ({})").format(a.name, a.difference(c.metric)[0]) for a in found]
        if names:
            lines.append(Markup('{} of {} <span class="{}">{}</span> {}: {}.').format(
                len(names), len(c.alive), css, text, c.baseline.name, Markup(", ").join(names)))
    return lines


def facts(c: Compared) -> list[tuple[str, str]]:
    """The few figures on top of the page."""
    finished = sum(len(a.runs) for a in c.arms)
    trials = sum(len(a.told.get("trials") or []) for a in c.arms)
    found = [("budget of each run", c.budget), ("seeds", str(len(c.told["seeds"]))),
             ("runs measured", str(finished)), ("tuning trials", str(trials) if trials else ""),
             ("time of the runs", duration(c.told.get("seconds")) if c.told.get("seconds") else "")]
    return [(name, said) for name, said in found if said]


def cell(c: Compared, a: Arm, metric: str) -> str:
    """A table's number: with its factor of the baseline's where it is a cost."""
    mine = a.mean(metric)
    if mine is None:
        return NONE
    kind = metric.partition("/")[0]
    said = signed(mine) if kind in ("gain", "forgetting") else quantity(metric, mine)
    times = "" if a.baseline or not unit_kind(metric) else ratio(mine, c.baseline.mean(metric))
    return f"{said} {times}".strip()


def shown(c: Compared, metrics: Sequence[str]) -> list[str]:
    """Those of the metrics that any arm has a number of."""
    return [m for m in metrics if any(a.mean(m) is not None for a in c.arms)]
