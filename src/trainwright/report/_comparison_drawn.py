"""What the page of a comparison shows as plots, each drawn once for the page and once as a picture."""
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

from trainwright.report import comparison_plots as draw
from trainwright.report import curated, plots
from trainwright.report._compared import FEW, Arm, Compared, shorten, shown, unit_words, words
from trainwright.report.numbers import value
from trainwright.report.plots import WIDTH, Line, Values

CURRENCIES = {"tokens": "tokens", "flops": "FLOPs", "seconds": "seconds of training"}
WIDE = 7.4
"""Inches of the differences, and of what stands below them, where there are many arms."""
QUALITY_OVER = ("seconds_per_step", "peak_memory_bytes", "trainable_parameters")


@dataclass(frozen=True)
class Plot:
    """A plot of the page: one drawing or several small ones, and the picture of them all."""

    title: str
    drawings: list[Markup]
    picture: str


def _whole(figure: Figure, name: str, title: str, label: str, out: Path) -> Plot:
    plots.png(figure, out / f"{name}.png")
    return Plot(title, [Markup(plots.svg(figure, name, label))], f"{name}.png")


def _several(panels: Sequence[draw.Panel], labels: Sequence[str], name: str, title: str, out: Path,
             size: tuple[float, float] = draw.PANEL) -> Plot:
    plots.png(draw.panels(panels, size=size), out / f"{name}.png")
    drawings = [Markup(plots.svg(draw.panels([p], size=size), f"{name}-{i}", label))
                for i, (p, label) in enumerate(zip(panels, labels, strict=True))]
    return Plot(title, drawings, f"{name}.png")


def with_unit(metric: str) -> str:
    """A metric and its unit, for the heading of a plot."""
    return ", ".join(part for part in (words(metric), unit_words(metric)) if part)


def rows(c: Compared) -> list[draw.Row]:
    """The differences of all arms in the main metric; failed ones have a row without dots."""
    found = []
    for a in c.others:
        one = a.compared.get(c.metric) or {}
        mean = one.get("difference")
        low, high = (one["low"], one["high"]) if mean is not None else (0.0, 0.0)
        said = " ".join(a.difference(c.metric)).strip() if mean is not None else ""
        found.append(draw.Row(a.name, one.get("values") or [], mean, low, high, a.standing(c.metric), said))
    return found


def beyond(c: Compared) -> bool:
    """Whether anything of an arm lies outside of the axis of ``differences``."""
    reach = draw.edge(rows(c), noise(c) or 0.0)
    return any(max(draw.furthest(r, 1), -draw.furthest(r, -1)) > reach for r in rows(c) if r.mean is not None)


def differences(c: Compared, out: Path) -> Plot:
    """The main metric seed by seed."""
    shown = rows(c)
    figure = draw.differences(shown, f"difference in {with_unit(c.metric)}", c.lower, noise(c),
                              WIDTH if len(c.others) <= FEW else WIDE)
    label = "; ".join(f"{r.label} {r.said} {r.verdict}" for r in shown)
    return _whole(figure, "difference", f"Difference from {c.baseline.name} in {with_unit(c.metric)}",
                  f"Differences from {c.baseline.name} in {words(c.metric)}: {label}", out)


def noise(c: Compared) -> float | None:
    """Half-width of the noise floor of the main metric, where it is known."""
    found = ((c.told.get("noise") or {}).get(c.metric) or {}).get("half_width")
    return found if found and math.isfinite(found) else None


# ---- on the way ----------------------------------------------------------------------------------------


def curves(c: Compared, out: Path) -> list[Plot]:
    """The metric over tokens, FLOPs and seconds, the budget's currency first; what no arm has is left out."""
    first = c.told["budget"]["currency"]
    found = []
    for currency in sorted(CURRENCIES, key=lambda k: k != first):
        lines = {a.name: line for a in c.arms if (line := _line(a, currency)) is not None}
        if not lines:
            continue
        told = next(a.told["curve"] for a in c.arms if a.name in lines)
        name, over, title = f"curve-{currency}", CURRENCIES[currency], with_unit(told["name"])
        if len(c.others) <= FEW:
            ends = "; ".join(f"{n} ends at {line.y[-1]:.3f}" for n, line in lines.items())
            figure = plots.curves(list(lines.values()), over, title)
            plots.png(figure, out / f"{name}.png")
            figure.set_size_inches(*draw.PANEL)
            drawing = Markup(plots.svg(figure, name, f"{words(told['name'])} over {over}: {ends}"))
            found.append(Plot(f"Over {over}", [drawing], f"{name}.png"))
        else:
            base = lines.get(c.baseline.name)
            arms = [line for n, line in lines.items() if n != c.baseline.name]
            found.append(_several([draw.against_baseline(line, base, over, line.label) for line in arms],
                                  [f"{line.label} over {over}" for line in arms], name, f"Over {over}", out))
    return found


def _line(a: Arm, currency: str) -> Line | None:
    """The mean over seeds and its band from the lowest to the highest; points that some seed has not are left out."""
    told: dict[str, Any] | None = a.told.get("curve")
    if not told or not told.get(currency) or not told.get("values"):
        return None
    y = np.array([[math.nan if v is None else v for v in row] for row in told["values"]], dtype=float)
    x = np.array(told[currency], dtype=float)
    kept = np.isfinite(y).all(axis=0) & np.isfinite(x)
    if not kept.any():
        return None
    y, x = y[:, kept], x[kept]
    points: Values = y.mean(axis=0)
    return Line(shorten([a.name])[0], x, points, low=y.min(axis=0), high=y.max(axis=0), colour=a.colour)


# ---- quality against cost ------------------------------------------------------------------------------


def pareto(c: Compared, out: Path) -> Plot | None:
    """The main metric over each cost that differs between arms."""
    return _over(c, shown(c, QUALITY_OVER), "pareto", out, draw.PANEL)


def balance(c: Compared, out: Path) -> Plot | None:
    """The main metric over forgetting of the first old domain, where that is measured and not the main metric itself."""
    return _over(c, [m for m in c.changes("forgetting")[:1] if m != c.metric], "balance", out,
                 (WIDTH, 3.1) if len(c.others) <= FEW else (WIDE, 4.2))


def _over(c: Compared, metrics: Sequence[str], name: str, out: Path, size: tuple[float, float]) -> Plot | None:
    found, labels = [], []
    for metric in metrics:
        points = _points(c, metric)
        if len(points) > 1 and max(p.x for p in points) > 1.01 * min(p.x for p in points):
            found.append(draw.cost(points, metric, with_unit(metric), with_unit(c.metric), c.lower))
            labels.append(f"{words(c.metric)} over {words(metric)}: " + "; ".join(f"{p.label} {p.y:.4g}" for p in points))
    return _several(found, labels, name, "", out, size) if found else None


def _points(c: Compared, metric: str) -> list[draw.Point]:
    found = []
    base = c.baseline.mean(c.metric)
    for a in c.arms:
        x, y = a.mean(metric), a.mean(c.metric)
        if x is None or y is None or not (math.isfinite(x) and math.isfinite(y)):
            continue
        one = a.compared.get(c.metric) or {}
        known = base is not None and one.get("low") is not None
        low, high = (one["baseline_mean"] + one["low"], one["baseline_mean"] + one["high"]) if known else (y, y)
        found.append(draw.Point(a.name, x, y, low, high, a.colour))
    return found


# ---- tuning --------------------------------------------------------------------------------------------


def tuning(c: Compared, out: Path) -> Plot | None:
    """Every arm's trials, a plot for each tuned setting, all with one vertical axis."""
    panels, labels = [], []
    limits = _limits(c)
    metric = (c.told.get("tuning") or {}).get("metric", c.metric)
    for a in c.arms:
        tried = a.told.get("trials") or []
        for key in dict.fromkeys(k for t in tried for k in t["values"]):
            some = [draw.Trial(t["values"][key], t.get("metric"), t["values"] == a.told.get("chosen"), bool(t.get("pruned")))
                    for t in tried if key in t["values"]]
            edge = key in (a.told.get("at_edge") or [])
            under = key + (" (best at the edge)" if edge else "")
            panels.append(draw.trials(some, a.colour, f"{shorten([a.name])[0]} · {words(metric)}", under, limits))
            labels.append(f"Tuning of {a.name}: " + "; ".join(
                f"{key} {t.x} {'failed' if t.y is None else 'gave ' + value(t.y)}" for t in some))
    return _several(panels, labels, "tuning", "", out) if panels else None


def _limits(c: Compared) -> tuple[float, float] | None:
    """One axis for all arms, around what tuning can choose from: trials far worse are named at its edge instead."""
    seen = sorted((float(t["metric"]) for a in c.arms for t in a.told.get("trials") or []
                   if t.get("metric") is not None and math.isfinite(t["metric"])), reverse=not c.lower)
    if not seen:
        return None
    best, middle = seen[0], statistics.median(seen)
    reach = 4 * abs(middle - best) or abs(best) * 0.01 or 1.0
    worst = max((abs(x - best) for x in seen if abs(x - best) <= reach), default=reach) or reach
    return (best - 0.12 * worst, best + 1.15 * worst) if c.lower else (best - 1.15 * worst, best + 0.12 * worst)


def selected(c: Compared, out: Path) -> list[Plot]:
    """What each arm was trained on, where its documents were selected otherwise than those of others: those kept among all."""
    told = [a.told.get("selected") or {} for a in c.arms]
    found = []
    for i, (a, stages) in enumerate(zip(c.arms, told, strict=True)):
        for stage, figures in stages.items():
            if any(other.get(stage) != figures for other in told):
                said = f"{a.name}: {curated.label(figures)}"
                found.append(_whole(curated.figure(figures, a.colour), f"selected-{i}-{stage}", said, f"What {said}", out))
    return found
