"""The page of a ladder: every effect against scale, what becomes of it, and an extrapolation that is called
one."""
from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from trainwright.core.shown import plain
from trainwright.report import plots
from trainwright.report.comparison import charts, export
from trainwright.report.comparison.numbers import unit_words, words
from trainwright.report.comparison.page import environment
from trainwright.report.comparison.plots import Plot
from trainwright.report.numbers import duration, interval, short
from trainwright.report.plots import MUTED, PAPER, tint

SIZE = (3.7, 2.8)
"""Inches of a plot."""
UNITS = {"flops": "FLOPs", "parameters": "parameters"}


def write(folder: Path, result: dict[str, Any]) -> Path:
    """Write ``folder/index.html``, its plots and its table; returns the page.

    Args:
        result: what ``result.json`` of a ladder holds. The page of each size lies in the folder ``size-N``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trends, main = result["trends"], result["metric"]
    drawn = [t for t in trends if t["points"]]
    _csv(folder / "ladder.csv", result)
    text = environment().get_template("ladder.html").render(
        result=result, story=[_sentence(result, t) for t in trends if t["metric"] == main],
        main=_plot([t for t in drawn if t["metric"] == main], result, "scale", folder),
        rest=_plot([t for t in drawn if t["metric"] != main and t["relative"]], result, "cost", folder),
        trends=trends, number=number, unit=UNITS[result["unit"]], short=short, duration=duration,
        pages=[f"size-{i + 1}/index.html" for i in range(len(result["sizes"]))], along=["ladder.csv"])
    page = folder / "index.html"
    page.write_text(plain(text, lines=True), encoding="utf-8")
    return page


def sentences(result: dict[str, Any]) -> list[str]:
    """What becomes of each arm's effect, in plain words."""
    return [_sentence(result, t)[1].striptags() for t in result["trends"] if t["metric"] == result["metric"]]


def number(t: dict[str, Any], part: dict[str, Any]) -> str:
    """An effect with its interval; that of a cost in percent."""
    metric, by = ("", 100.0) if t["relative"] else (t["metric"], 1.0)
    mean, ends = interval(metric, by * part["mean"], by * part["low"], by * part["high"])
    return f"{mean}{' %' if t['relative'] else ''} {ends}".strip()


def _sentence(result: dict[str, Any], t: dict[str, Any]) -> tuple[str, Markup]:
    """What becomes of an arm's effect in the metric that decides; before it the class of its list item."""
    if t["word"] == "failed":
        return "failure", Markup("<strong>{}</strong> failed at the size {}").format(t["arm"], t["reason"])
    lead = Markup("<strong>{}</strong>: its difference from {} in {} ").format(
        t["arm"], result["baseline"], words(t["metric"]))
    how = {"grows": "<em>grows</em> with scale", "shrinks": "<em>shrinks</em> with scale",
           "holds": "<em>holds</em> over these sizes",
           "not decided": "is <em>not decided</em>: the seeds show neither that it changes nor that it holds"}
    crosses = t["word"] in ("grows", "shrinks") and t["first"]["mean"] * t["last"]["mean"] < 0
    points, names = t["points"], [s["name"] for s in result["sizes"]]
    return "", lead + Markup(how[t["word"]]) + Markup(
        "{}, from {} at {} to {} at {}. <span class=\"cost\">Extrapolated to {} {}: {}, if it goes on along "
        "its line{}.</span>").format(
            ", and changes its sign" if crosses else "", number(t, points[0]), names[0],
            number(t, points[-1]), names[-1], short(t["scale_beyond"]), UNITS[result["unit"]],
            number(t, t["beyond"]), ", which these sizes do not lie on" if t["bent"] else "")


def _plot(trends: Sequence[dict[str, Any]], result: dict[str, Any], name: str, out: Path) -> Plot | None:
    """A small plot for each effect."""
    if not trends:
        return None
    panels = [panel(t, UNITS[result["unit"]], result["arms"].index(t["arm"])) for t in trends]
    kept = export.picture(charts.panels(panels, size=SIZE), out, name)
    drawings = [Markup(plots.svg(charts.panels([p], size=SIZE), f"{name}-{i}", _label(t, result)))
                for i, (p, t) in enumerate(zip(panels, trends, strict=True))]
    return Plot("", drawings, kept)


def _label(t: dict[str, Any], result: dict[str, Any]) -> str:
    points = "; ".join(f"{s['name']} {number(t, p)}"
                       for s, p in zip(result["sizes"], t["points"], strict=True))
    return f"{t['arm']}, {words(t['metric'])} by size: {points}; {t['word']}"


def panel(t: dict[str, Any], unit: str, colour: int) -> charts.Panel:
    """Differences seed by seed and their intervals over scale, the line, and its end beyond as a hollow
    mark."""
    by = 100.0 if t["relative"] else 1.0

    def draw(axes: Axes) -> None:
        xs, tone = [p["scale"] for p in t["points"]], tint(colour)
        axes.set_xscale("log")
        axes.axhline(0, color=MUTED, linewidth=0.9)
        for p in t["points"]:
            axes.plot([p["scale"]] * len(p["values"]), [by * v for v in p["values"]], "o", color=tone,
                      markersize=3.2, alpha=0.4, markeredgewidth=0)
            axes.plot([p["scale"]] * 2, [by * p["low"], by * p["high"]], color=tone, linewidth=2.2)
            axes.plot([p["scale"]], [by * p["mean"]], "o", color=tone, markersize=6, markeredgecolor=PAPER)
        ends = [by * t[k]["mean"] for k in ("first", "last", "beyond")]
        axes.plot([xs[0], xs[-1]], ends[:2], color=tone, linewidth=1.1)
        axes.plot([xs[-1], t["scale_beyond"]], ends[1:], color=tone, linewidth=1.1, linestyle=(0, (3, 2)))
        far, beyond = t["scale_beyond"], t["beyond"]
        axes.plot([far] * 2, [by * beyond["low"], by * beyond["high"]], color=tone, linewidth=1.1,
                  linestyle=(0, (3, 2)))
        axes.plot([far], ends[2:], "o", color=tone, markersize=6, markerfacecolor=PAPER)
        _dress(axes, t, unit, far / xs[0])
    return draw


def _dress(axes: Axes, t: dict[str, Any], unit: str, span: float) -> None:
    parts = [words(t["metric"]), "%" if t["relative"] else unit_words(t["metric"])]
    title = f"{t['arm']} · {', '.join(part for part in parts if part)}"
    axes.set_title(title, loc="left", color=MUTED, fontsize=9)
    axes.set_xlabel(f"{unit} · hollow: extrapolation")
    every = max(1, math.ceil(math.log10(span) / 5))
    axes.xaxis.set_major_locator(LogLocator(10.0**every, numticks=8) if span > 100 else
                                 LogLocator(10, subs=(1.0, 3.0), numticks=6))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: charts.tick(y)))
    axes.margins(x=0.08)


def _csv(file: Path, result: dict[str, Any]) -> None:
    """A row for each effect at each size, and one for its extrapolation."""
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(("arm", "metric", "relative", "size", result["unit"], "effect", "low", "high",
                         "trend"))
        for t in (t for t in result["trends"] if t["points"]):
            for size, p in zip(result["sizes"], t["points"], strict=True):
                writer.writerow((t["arm"], t["metric"], t["relative"], size["name"], p["scale"], p["mean"],
                                 p["low"], p["high"], t["word"]))
            far = t["beyond"]
            writer.writerow((t["arm"], t["metric"], t["relative"], "extrapolation", t["scale_beyond"],
                             far["mean"], far["low"], far["high"], t["word"]))


