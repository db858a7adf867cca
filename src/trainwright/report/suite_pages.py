"""The shared suites as part of the documentation: what was found of each, and the curve of its search.
Markdown, and sentences for a terminal."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from trainwright.compare import suite
from trainwright.papers import library
from trainwright.report.numbers import NONE, duration, value

MISSING = {"tuning": "its baseline has not been tuned by a search that is kept",
           "tricks": "no tricks were put against its baseline",
           "aa": "it was not compared with itself"}


def sentence(name: str, part: str, folder: Path | None = None) -> str:
    """What was found of a suite, in a sentence or two."""
    found = suite.part_of(name, part, folder)
    if found is None:
        old = suite.read(name, folder).get(part)
        return f"{name}: {MISSING[part]}" + (f" since it changed (it was, on {old['date']})." if old else ".")
    return f"{name}: {_SAID[part](found)}"


def _tuning(found: dict[str, Any]) -> str:
    best = ", ".join(f"{key} {_shown(x)}" for key, x in found["chosen"].items())
    edge = f" At the edge of what was tried: {', '.join(found['at_edge'])}." if found["at_edge"] else ""
    effort = f"{len(found['trials'])} trials of {found['tune_seeds']} seeds"
    took, least = duration(found["seconds"]), f"{found['metric']} {value(found['best'])}"
    return f"tuned in {effort}, {took} in all: {least} at {best}.{edge}"


def _tricks(found: dict[str, Any]) -> str:
    rows = [f"{r['arm']} {r['difference']:+.4f} [{r['low']:+.4f}, {r['high']:+.4f}]" for r in found["arms"]]
    rows += [f"{arm} failed ({why})" for arm, why in found["failed"].items()]
    return f"against the tuned baseline, {found['metric']}: {'; '.join(rows) or NONE}."


def _aa(found: dict[str, Any]) -> str:
    rows = [f"{metric} {value(m['mean'])} ± {value(m['sd'])}{_wrong(m)}"
            for metric, m in found["metrics"].items()]
    return f"{found['runs']} runs of {found['arm']} against each other: {'; '.join(rows) or NONE}."


def _wrong(m: dict[str, Any]) -> str:
    if m["wrong"] is None:
        return ""
    deals = f"{m['deals']:,} deals to two sides of {m['seeds']}"
    return f" over the seeds, and a test tells {100 * m['wrong']:.1f} % of {deals} apart"


_SAID = {"tuning": _tuning, "tricks": _tricks, "aa": _aa}


def noise(name: str, metric: str) -> str:
    """The noise of a suite as it stands beside a verdict; empty where nothing is known of it."""
    found = suite.part_of(name, "aa") if name else None
    one = found["metrics"].get(metric) if found else None
    if one is None:
        return ""
    wrong = "" if one["wrong"] is None else f", {100 * one['wrong']:.1f} % wrong"
    return f"A/A: ±{value(one['sd'])} over the seeds{wrong}"


def doubts(name: str, metric: str, effect: float, better: str, uses: set[str]) -> str:
    """The tricks that gain more on a suite's baseline than a claim does; empty where there is none."""
    found = suite.part_of(name, "tricks") if name else None
    if found is None or found["metric"] != metric:
        return ""
    tricks = suite.in_doubt(effect, better, uses, name)
    return f"in doubt: {', '.join(tricks)} gains more on this baseline" if tricks else ""


def tables() -> str:
    """All suites, with what is known of each; the curve of a search as a table."""
    parts = []
    for name in suite.names():
        used = sum(claim.suite == name for paper in library.papers().values() for claim in paper.claims)
        said = [sentence(name, part).removeprefix(f"{name}: ") for part in suite.PARTS]
        said = [one[:1].upper() + one[1:] for one in said]
        file = f"`src/trainwright/compare/suites/{name}.toml`"
        parts += [f"### {name}", f"{file}; {used} claims are tested in it.",
                  "\n".join(f"- {one}" for one in said), *_curve(name)]
    return "\n\n".join(parts)


def _curve(name: str) -> list[str]:
    """Every trial of a suite's search, in the order in which it was made."""
    found = suite.part_of(name, "tuning")
    if found is None:
        return []
    keys = list(found["chosen"])
    head = " | ".join(f"`{k}`" for k in keys)
    lines = [f"| trial | {head} | {found['metric']} |", "| --- " * (len(keys) + 2) + "|"]
    for number, trial in enumerate(found["trials"], 1):
        bold = "**" if trial["values"] == found["chosen"] else ""
        metric = "failed" if trial["metric"] is None else value(trial["metric"])
        shown = " | ".join(_shown(trial["values"][k]) for k in keys)
        lines.append(f"| {number} | {shown} | {bold}{metric}{bold} |")
    return ['??? note "The search"\n\n' + "\n".join(f"    {line}" for line in lines)]


def _shown(x: Any) -> str:
    return f"{x:g}" if isinstance(x, (int, float)) else str(x)
