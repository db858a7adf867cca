"""The plots on the page of a comparison, each drawn once for the page and once as a picture."""
from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from trainwright.report import curated, plots
from trainwright.report.comparison import charts, export
from trainwright.report.comparison.numbers import FEW, Arm, Result, shorten, shown, unit_words, words
from trainwright.report.numbers import value
from trainwright.report.plots import WIDTH, Line, Values

CURRENCIES = {"tokens": "tokens", "flops": "FLOPs", "seconds": "seconds of training"}
WIDE = 7.4
"""Inches of the differences, and of what stands below them, where there are many arms."""
QUALITY_OVER = ("stored_bytes", "seconds_per_step", "peak_memory_bytes", "trainable_parameters")


@dataclass(frozen=True)
class Plot:
    """A plot of the page: one drawing or several small ones, and the picture of them all."""

    title: str
    drawings: list[Markup]
    picture: str
    """The name of its PNG; an SVG and a PDF lie beside it."""

    @property
    def files(self) -> list[tuple[str, str]]:
        """Each format, and the file's name."""
        return [(kind.upper(), f"{self.picture.removesuffix('.png')}.{kind}") for kind in export.FORMATS]


def _whole(figure: Figure, name: str, title: str, label: str, out: Path) -> Plot:
    kept = export.picture(figure, out, name)
    return Plot(title, [Markup(plots.svg(figure, name, label))], kept)


def _several(panels: Sequence[charts.Panel], labels: Sequence[str], name: str, title: str, out: Path,
             size: tuple[float, float] = charts.PANEL) -> Plot:
    kept = export.picture(charts.panels(panels, size=size), out, name)
    drawings = [Markup(plots.svg(charts.panels([p], size=size), f"{name}-{i}", label))
                for i, (p, label) in enumerate(zip(panels, labels, strict=True))]
    return Plot(title, drawings, kept)


def with_unit(metric: str) -> str:
    """A metric and its unit, for the heading of a plot."""
    return ", ".join(part for part in (words(metric), unit_words(metric)) if part)


def rows(c: Result) -> list[charts.Row]:
    """The differences of all arms in the main metric; failed ones have a row without dots."""
    found = []
    for a in c.others:
        one = a.compared.get(c.metric) or {}
        mean = one.get("difference")
        low, high = (one["low"], one["high"]) if mean is not None else (0.0, 0.0)
        text = " ".join(a.difference(c.metric)).strip() if mean is not None else ""
        found.append(charts.Row(a.name, one.get("values") or [], mean, low, high, a.standing(c.metric), text))
    return found


def beyond(c: Result) -> bool:
    """Whether anything of an arm lies outside of the axis of ``differences``."""
    drawn = [r for r in rows(c) if r.mean is not None]
    reach = charts.edge(drawn, noise(c) or 0.0)
    return any(max(charts.furthest(r, 1), -charts.furthest(r, -1)) > reach for r in drawn)


def differences(c: Result, out: Path) -> Plot:
    """The main metric seed by seed."""
    width = WIDTH if len(c.others) <= FEW else WIDE
    figure = charts.differences(rows(c), f"difference in {with_unit(c.metric)}", c.lower, noise(c), width)
    label = "; ".join(f"{r.label} {r.text} {r.verdict}" for r in rows(c))
    return _whole(figure, "difference", f"Difference from {c.baseline.name} in {with_unit(c.metric)}",
                  f"Differences from {c.baseline.name} in {words(c.metric)}: {label}", out)


def noise(c: Result) -> float | None:
    """Half-width of the noise floor of the main metric, where it is known."""
    found = ((c.json.get("noise") or {}).get(c.metric) or {}).get("half_width")
    return found if found and math.isfinite(found) else None


# ---- on the way -------------------------------------------------------------------------------------


def curves(c: Result, out: Path) -> list[Plot]:
    """The metric over tokens, FLOPs and seconds, the budget's currency first; what no arm has is left out."""
    first = c.json["budget"]["currency"]
    found = []
    for currency in sorted(CURRENCIES, key=lambda k: k != first):
        lines = {a.name: line for a in c.arms if (line := _line(a, currency)) is not None}
        if not lines:
            continue
        metric = next(a.json["curve"]["name"] for a in c.arms if a.name in lines)
        name, over, title = f"curve-{currency}", CURRENCIES[currency], with_unit(metric)
        if len(c.others) <= FEW:
            ends = "; ".join(f"{n} ends at {line.y[-1]:.3f}" for n, line in lines.items())
            figure = plots.curves(list(lines.values()), over, title)
            kept = export.picture(figure, out, name)
            figure.set_size_inches(*charts.PANEL)
            drawing = Markup(plots.svg(figure, name, f"{words(metric)} over {over}: {ends}"))
            found.append(Plot(f"Over {over}", [drawing], kept))
        else:
            base = lines.get(c.baseline.name)
            arms = [line for n, line in lines.items() if n != c.baseline.name]
            panels = [charts.against_baseline(line, base, over, line.label) for line in arms]
            labels = [f"{line.label} over {over}" for line in arms]
            found.append(_several(panels, labels, name, f"Over {over}", out))
    return found


def _line(a: Arm, currency: str) -> Line | None:
    """The mean over seeds and its band from the lowest to the highest; without points that a seed lacks."""
    curve: dict[str, Any] | None = a.json.get("curve")
    if not curve or not curve.get(currency) or not curve.get("values"):
        return None
    y = np.array([[math.nan if v is None else v for v in row] for row in curve["values"]], dtype=float)
    x = np.array(curve[currency], dtype=float)
    kept = np.isfinite(y).all(axis=0) & np.isfinite(x)
    if not kept.any():
        return None
    y, x = y[:, kept], x[kept]
    points: Values = y.mean(axis=0)
    return Line(shorten([a.name])[0], x, points, low=y.min(axis=0), high=y.max(axis=0), colour=a.colour)


# ---- quality against cost ---------------------------------------------------------------------------


def pareto(c: Result, out: Path) -> Plot | None:
    """The main metric over each cost that differs between arms."""
    return _over(c, shown(c, QUALITY_OVER), "pareto", out, charts.PANEL)


def balance(c: Result, out: Path) -> Plot | None:
    """The main metric over forgetting of the first old domain, unless that is the main metric itself."""
    return _over(c, [m for m in c.changes("forgetting")[:1] if m != c.metric], "balance", out,
                 (WIDTH, 3.1) if len(c.others) <= FEW else (WIDE, 4.2))


def _over(c: Result, metrics: Sequence[str], name: str, out: Path,
          size: tuple[float, float]) -> Plot | None:
    found, labels = [], []
    for metric in metrics:
        points = _points(c, metric)
        if len(points) > 1 and max(p.x for p in points) > 1.01 * min(p.x for p in points):
            found.append(charts.cost(points, metric, with_unit(metric), with_unit(c.metric), c.lower))
            labels.append(f"{words(c.metric)} over {words(metric)}: "
                          + "; ".join(f"{p.label} {p.y:.4g}" for p in points))
    return _several(found, labels, name, "", out, size) if found else None


def _points(c: Result, metric: str) -> list[charts.Point]:
    found = []
    base = c.baseline.mean(c.metric)
    for a in c.arms:
        x, y = a.mean(metric), a.mean(c.metric)
        if x is None or y is None or not (math.isfinite(x) and math.isfinite(y)):
            continue
        one = a.compared.get(c.metric) or {}
        known = base is not None and one.get("low") is not None
        low, high = (one["baseline_mean"] + one[end] if known else y for end in ("low", "high"))
        found.append(charts.Point(a.name, x, y, low, high, a.colour))
    return found


# ---- tuning -----------------------------------------------------------------------------------------


def tuning(c: Result, out: Path) -> Plot | None:
    """Every arm's trials, a plot for each tuned setting, all with one vertical axis."""
    panels, labels = [], []
    limits = _limits(c)
    metric = (c.json.get("tuning") or {}).get("metric", c.metric)
    for a in c.arms:
        chosen = a.json.get("chosen")
        for key in dict.fromkeys(k for t in a.trials for k in t["values"]):
            some = [charts.Trial(t["values"][key], t.get("metric"), chosen=t["values"] == chosen,
                                 pruned=bool(t.get("pruned"))) for t in a.trials if key in t["values"]]
            edge = key in (a.json.get("at_edge") or [])
            under = key + (" (best at the edge)" if edge else "")
            title = f"{shorten([a.name])[0]} · {words(metric)}"
            panels.append(charts.trials(some, a.colour, title, under, limits))
            labels.append(f"Tuning of {a.name}: " + "; ".join(
                f"{key} {t.x} {'failed' if t.y is None else 'gave ' + value(t.y)}" for t in some))
    return _several(panels, labels, "tuning", "", out) if panels else None


def _limits(c: Result) -> tuple[float, float] | None:
    """One axis for all arms, around what tuning can choose from; far worse trials are named at its edge."""
    results = [t["metric"] for a in c.arms for t in a.trials if t.get("metric") is not None]
    seen = sorted((float(x) for x in results if math.isfinite(x)), reverse=not c.lower)
    if not seen:
        return None
    best, middle = seen[0], statistics.median(seen)
    reach = 4 * abs(middle - best) or abs(best) * 0.01 or 1.0
    worst = max((abs(x - best) for x in seen if abs(x - best) <= reach), default=reach) or reach
    before, behind = 0.12 * worst, 1.15 * worst
    return (best - before, best + behind) if c.lower else (best - behind, best + before)


def selected(c: Result, out: Path) -> list[Plot]:
    """The documents that each arm kept among all, where arms do not select the same."""
    by_arm = [a.json.get("selected") or {} for a in c.arms]
    found = []
    for i, (a, stages) in enumerate(zip(c.arms, by_arm, strict=True)):
        for stage, figures in stages.items():
            if any(other.get(stage) != figures for other in by_arm):
                title, figure = f"{a.name}: {curated.label(figures)}", curated.figure(figures, a.colour)
                found.append(_whole(figure, f"selected-{i}-{stage}", title, f"What {title}", out))
    return found
