"""The result of a comparison in sentences: what was compared, and the answer for each arm."""
from __future__ import annotations

from typing import Any

from markupsafe import Markup

from trainwright.report.comparison.numbers import FEW, Arm, Result, unit_words, words
from trainwright.report.numbers import duration, interval, ratio, share, signed

COSTS = ("seconds_per_step", "peak_memory_bytes", "stored_bytes")
"""Costs that a sentence may mention."""
NOTABLE = 0.05
"""Share by which a cost must differ from the baseline's to be mentioned; the table has them all."""
FALSE_ALARM = ("A difference was found where there is none. Chance does that in one of twenty such "
               "comparisons; if it stays with other seeds, the runs differ in more than their seeds.")


def lead(c: Result) -> str:
    """What was compared, and with what effort."""
    tuning = c.json.get("tuning")
    who = "The same arm twice" if c.json.get("aa") else f"{len(c.arms)} arms"
    budget = f", {c.budget} a run" if c.budget else ", as far as the recipe says"
    effort = f", after {tuning['trials']} tuning trials" if tuning else ""
    unit = f", in {unit_words(c.metric)}" if unit_words(c.metric) else ""
    seeds = f"{'at most ' if c.json.get('race') else ''}{len(c.json['seeds'])} seeds"
    return (f"{who} in the stage {c.json['stage']}, each with {seeds}{budget}{effort}. "
            f"What decides is the {words(c.metric)}{unit}; {'lower' if c.lower else 'higher'} is better.")


def story(c: Result) -> list[tuple[str, Markup]]:
    """The answer arm by arm, failures first; in groups where there are many arms. Before each line stands the
    class of its list item."""
    lines = [("failure", Markup("<strong>{}</strong> failed: {}").format(a.name, a.failed))
             for a in c.arms if a.failed]
    lines += [("failure",
               Markup("<strong>{}</strong> was not measured in {}.").format(a.name, words(c.metric)))
              for a in c.others if not a.failed and a not in c.alive]
    if len(c.alive) > FEW:
        return lines + [("", line) for line in _groups(c)] + race(c)
    changes = [*c.changes("gain"), *c.changes("forgetting")]
    for a in c.alive:
        sentences = [_answer(c, a), *(_change(c, a, m) for m in changes)]
        costs = _costs(c, a)
        tail = Markup(' <span class="cost">{}</span>').format(costs) if costs else Markup("")
        if a.caveats:
            tail += Markup(' <span class="beside">({})</span>').format("; ".join(a.caveats))
        lines.append(("", Markup(" ").join(s for s in sentences if s) + tail))
    lines += race(c) + chance(c)
    if c.json.get("aa") and any(a.verdict(c.metric) in ("better", "worse") for a in c.alive):
        lines.append(("failure", Markup(FALSE_ALARM)))
    return lines


def race(c: Result) -> list[tuple[str, Markup]]:
    """What it took until all was decided, or what was not."""
    told = c.json.get("race")
    if not told:
        return []
    undecided = [name for name, done in told["decided"].items() if not done]
    ends = (f"After {told['most']} seeds not decided: {', '.join(undecided)}" if undecided
            else "Seeds were added until every verdict was decided")
    saved = told["fixed_runs"] - told["runs"]
    return [("", Markup("{}. {} runs, where {} seeds of each arm take {}: {} saved.").format(
        ends, told["runs"], told["most"], told["fixed_runs"], saved))]


def chance(c: Result) -> list[tuple[str, Markup]]:
    """Of an A/A comparison: how often its runs, dealt to two sides, are told apart in the main metric."""
    found = (c.json.get("wrong") or {}).get(c.metric)
    if not found:
        return []
    return [("", Markup("Its {} runs, dealt to two sides of {} seeds in {:,} random ways, are told apart in "
                        "{}, where 5 % are expected by chance.").format(
        found["runs"], found["seeds"], found["deals"], share(found["share"])))]


def facts(c: Result) -> list[tuple[str, str]]:
    """The few figures on top of the page."""
    trials, seconds = sum(len(a.trials) for a in c.arms), c.json.get("seconds")
    found = [("budget of each run", c.budget), ("seeds", str(len(c.json["seeds"]))),
             ("runs measured", str(sum(len(a.runs) for a in c.arms))),
             ("tuning trials", str(trials) if trials else ""),
             ("time of the runs", duration(seconds) if seconds else "")]
    return [(name, text) for name, text in found if text]


def _answer(c: Result, a: Arm) -> Markup:
    one = a.compared[c.metric]
    if one["verdict"] == "not decided":
        text = "<strong>{}</strong>: <em>not decided</em> against {} with {} seeds in {} ({})."
        return Markup(text).format(a.name, c.baseline.name, len(one["values"]), words(c.metric),
                                   " ".join(a.difference(c.metric)).strip())
    if one["verdict"] not in ("better", "worse"):
        power = f" A true one of {a.detectable(c.metric)} would be found four times in five."
        text = "<strong>{}</strong>: <em>no difference</em> from {} at this budget in {} ({}).{}"
        return Markup(text).format(
            a.name, c.baseline.name, words(c.metric), " ".join(a.difference(c.metric)).strip(),
            power if one.get("detectable") else "")
    by = interval(c.metric, *_upright(one), sign=False)
    way = "lower" if one["difference"] < 0 else "higher"
    css = "good" if one["verdict"] == "better" else "bad"
    return Markup('<strong>{}</strong> is <span class="{}">{}</span> than {}: its {} is {} by {}.').format(
        a.name, css, one["verdict"], c.baseline.name, words(c.metric), way, " ".join(by).strip())


def _upright(one: dict[str, Any]) -> tuple[float, float, float]:
    """Size of a difference and its interval, for a sentence that gives the direction in words."""
    x, low, high = one["difference"], one["low"], one["high"]
    return (x, low, high) if x >= 0 else (-x, -high, -low)


def _change(c: Result, a: Arm, metric: str) -> Markup:
    """Gain or forgetting, where it differs from the baseline's and is not the main metric in other words."""
    kind, _, domain = metric.partition("/")
    one = a.compared.get(metric) or {}
    if metric == c.metric or (kind == "gain" and c.metric.partition("/")[2] == domain):
        return Markup("")
    if one.get("verdict") not in ("better", "worse"):
        return Markup("")
    more = one["difference"] > 0
    verb = f"{'learns' if kind == 'gain' else 'forgets'} {'more' if more else 'less'} of"
    css = "good" if one["verdict"] == "better" else "bad"
    return Markup('It <span class="{}">{}</span> {}: {} instead of {}.').format(
        css, verb, domain, signed(one["arm_mean"]), signed(one["baseline_mean"]))


def _costs(c: Result, a: Arm) -> str:
    """What a step and a copy cost, as factors of the baseline's."""
    found = []
    for metric in COSTS:
        mine, base = a.mean(metric), c.baseline.mean(metric)
        if mine and base and abs(mine / base - 1) >= NOTABLE:
            found.append(f"{words(metric)} {ratio(mine, base)}")
    return ", ".join(found)


def _groups(c: Result) -> list[Markup]:
    """The names of all better arms, of all worse ones, and of those without a difference, best first."""
    lines = []
    sign = 1 if c.lower else -1
    for verdict, css, text in (("better", "good", "better than"),
                               ("no difference", "", "without a difference from"),
                               ("not decided", "", "not decided against"),
                               ("worse", "bad", "worse than")):
        found = sorted((a for a in c.alive if a.verdict(c.metric) == verdict),
                       key=lambda a: sign * a.compared[c.metric]["difference"])
        names = [Markup("<strong>{}</strong> ({})").format(a.name, a.difference(c.metric)[0]) for a in found]
        if names:
            lines.append(Markup('{} of {} <span class="{}">{}</span> {}: {}.').format(
                len(names), len(c.alive), css, text, c.baseline.name, Markup(", ").join(names)))
    return lines
