"""The kinds of chart in a comparison: differences by seed, curves with bands, quality over cost, trials."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from trainwright.report.comparison.labels import NAME, spread
from trainwright.report.comparison.numbers import LETTERS, shorten
from trainwright.report.numbers import short, size, unit_kind
from trainwright.report.plots import BAD, GOOD, INK, MUTED, PAPER, RC, WIDTH, Line, tint

ROW = 0.46
"""Inches of an arm's row."""
PANEL = (3.5, 2.5)
"""Inches of one of several small plots."""
BEYOND = 3.0
"""An interval that reaches so many times as far as the middle one is drawn as an arrow: it would squeeze the
others."""
Panel = Callable[[Axes], None]


@dataclass(frozen=True)
class Row:
    """The differences of one arm from the baseline; without a ``mean`` there are none to draw."""

    label: str
    values: Sequence[float]
    mean: float | None
    low: float
    high: float
    verdict: str
    text: str
    """What stands at the right: the difference and its interval."""


@dataclass(frozen=True)
class Point:
    """An arm in a plot of quality against cost."""

    label: str
    x: float
    y: float
    low: float
    high: float
    colour: int


@dataclass(frozen=True)
class Trial:
    """One tuning trial: the value tried, and what came of it (None where it failed)."""

    x: float | str
    y: float | None
    chosen: bool = False
    pruned: bool = False


# ---- differences ------------------------------------------------------------------------------------


def differences(rows: Sequence[Row], xlabel: str, lower: bool, noise: float | None,
                width: float = WIDTH) -> Figure:
    """A row for each arm: a dot for each seed, the mean and its interval on one axis, the verdict in words.

    Args:
        lower: whether lower is better, and therefore better to the left.
        noise: half-width of the grey band around zero.
        width: in inches; a wider one has room for longer names.
    """
    style = {"font.size": 10, "ytick.labelsize": 10, "ytick.color": INK, "axes.grid.axis": "x"}
    with matplotlib.rc_context(RC | style):
        figure = Figure(figsize=(width, 0.85 + ROW * len(rows)), layout="constrained")
        axes = figure.subplots()
        reach = edge(rows, noise or 0.0)
        axes.set_xlim(-reach, reach)
        axes.set_ylim(len(rows) - 0.45, -0.55)
        if noise:
            axes.axvspan(-min(noise, reach), min(noise, reach), color=MUTED, alpha=0.14, linewidth=0)
        axes.axvline(0, color=MUTED, linewidth=0.9)
        for y, row in enumerate(rows):
            _row(axes, row, y, reach)
        letters = round(LETTERS * (width / WIDTH) ** 2)
        axes.set_yticks(range(len(rows)), shorten([r.label for r in rows], letters))
        axes.xaxis.set_major_locator(MaxNLocator(4, symmetric=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: tick(x)))
        axes.set_xlabel(xlabel)
        axes.set_title("← better" if lower else "← worse", loc="left", fontsize=9, color=MUTED)
        axes.set_title("worse →" if lower else "better →", loc="right", fontsize=9, color=MUTED)
    return figure


def tick(x: float) -> str:
    """A difference on an axis, without zeros that say nothing."""
    return f"{x:+.6f}".rstrip("0").rstrip(".").replace("-", "−") if abs(x) > 1e-9 else "0"


def edge(rows: Sequence[Row], noise: float) -> float:
    """How far the axis reaches to both sides."""
    ends = sorted(max(furthest(r, 1), -furthest(r, -1)) for r in rows if r.mean is not None)
    if not ends:
        return 1.1 * noise or 1.0
    usual = max(ends[len(ends) // 2], noise)
    return 1.12 * max([x for x in ends if x <= BEYOND * usual] + [noise]) or 1.0


def _row(axes: Axes, row: Row, y: float, reach: float) -> None:
    colour = {"better": GOOD, "worse": BAD, "failed": BAD}.get(row.verdict, INK)
    for text, ink, up in ((row.text, INK, 6), (row.verdict, colour, -6)):
        axes.annotate(text, (1, y), xycoords=("axes fraction", "data"), xytext=(8, up),
                      textcoords="offset points", va="center", fontsize=9, color=ink,
                      fontweight="bold" if ink != INK else "normal", annotation_clip=False)
    if row.mean is None:
        return
    for side in (-1, 1):
        if side * furthest(row, side) > reach:
            axes.plot([side * reach], [y - 0.08], ">" if side > 0 else "<", color=colour, markersize=7,
                      clip_on=False)
    axes.plot(row.values, [y + 0.22] * len(row.values), "o", markersize=3.6, color=colour, alpha=0.55,
              markeredgewidth=0)
    axes.plot([row.low, row.high], [y - 0.08] * 2, color=colour, linewidth=2.2)
    axes.plot([row.mean], [y - 0.08], "o", color=colour, markersize=6.5, markeredgecolor=PAPER)


def furthest(row: Row, side: int) -> float:
    """What of a row reaches furthest to a side."""
    return side * max(side * x for x in (row.low, row.high, *row.values))


# ---- small plots ------------------------------------------------------------------------------------


def panels(drawn: Sequence[Panel], columns: int = 3, size: tuple[float, float] = PANEL) -> Figure:
    """Small plots side by side, each of ``size`` inches: one for a page, all of them for a picture."""
    columns = 2 if len(drawn) == 4 else min(columns, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
        grid = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes, draw in zip(grid, drawn, strict=False):
            draw(axes)
        for axes in grid[len(drawn):]:
            axes.set_axis_off()
        spread(figure)
    return figure


class Even(Formatter):
    """Writes the ticks of an axis with the same decimals wherever their unit is the same: 0.40 s, 0.48 s."""

    def __init__(self, say: Callable[[float], str]) -> None:
        self.say = say

    def __call__(self, x: float, pos: int | None = None) -> str:
        """One value, as it stands alone."""
        return self.say(x)

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """All of an axis."""
        parts = [text.partition(" ") for text in map(self.say, values)]
        most: dict[str, int] = {}
        for number, _, unit in parts:
            most[unit] = max(most.get(unit, 0), len(number.partition(".")[2]))
        return [_padded(number, most[unit]) + gap + unit for number, gap, unit in parts]


def _padded(number: str, decimals: int) -> str:
    """A number with so many decimals; zero and what is none stay as they are."""
    whole, _, part = number.partition(".")
    if not whole.lstrip("-").isdecimal() or not decimals or number == "0":
        return number
    return f"{whole}.{part.ljust(decimals, '0')}"


def against_baseline(arm: Line, base: Line | None, xlabel: str, title: str) -> Panel:
    """One arm's curve and its band, and the baseline's in ink: where there are too many arms for one plot."""
    def draw(axes: Axes) -> None:
        for line, width in ((base, 1.1), (arm, 1.8)):
            if line is not None:
                colour = tint(line.colour)
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.18, linewidth=0)
                axes.plot(line.x, line.y, color=colour, linewidth=width)
        _dress(axes, title, xlabel)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
        axes.margins(x=0.02)
    return draw


def cost(points: Sequence[Point], metric: str, xlabel: str, ylabel: str, lower: bool) -> Panel:
    """Quality over a cost of which less is better, with the intervals of the difference from the baseline and
    the front of the means."""
    def draw(axes: Axes) -> None:
        front = frontier([(p.x, p.y) for p in points], lower)
        xs = [p.x for p in points]
        if unit_kind(metric) == "count" and min(xs) > 0 and max(xs) / min(xs) > 8:
            axes.set_xscale("log")
            ticks = (1.0,) if max(xs) / min(xs) > 100 else (1.0, 3.0)
            axes.xaxis.set_major_locator(LogLocator(10, subs=ticks, numticks=5))
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.margins(x=0.16, y=0.14)
        for p in points:
            axes.plot([p.x, p.x], [p.low, p.high], color=tint(p.colour), linewidth=1.5, alpha=0.8)
            axes.plot([p.x], [p.y], "o", color=tint(p.colour), markersize=6.5, markeredgecolor=PAPER)
        if len(front) > 1:
            axes.step(*zip(*front, strict=True), where="post", color=MUTED, linewidth=1.0,
                      linestyle=(0, (4, 3)), zorder=1)
        axes.autoscale_view()
        _dress(axes, ylabel, xlabel)
        axes.set_title("↙ better" if lower else "↖ better", loc="right", color=MUTED, fontsize=9)
        axes.xaxis.set_major_formatter(Even(lambda x: cost_tick(metric, x)))
        for p, name in zip(points, shorten([p.label for p in points]), strict=True):
            axes.annotate(name, (p.x, p.y), xytext=(0, 0), textcoords="offset points", va="center",
                          fontsize=9, color=tint(p.colour), gid=NAME)
    return draw


def cost_tick(metric: str, x: float) -> str:
    """A cost on an axis."""
    if x < 0:
        return ""
    seconds = f"{x:g} s" if x >= 0.1 or not x else f"{1000 * x:g} ms"
    return {"bytes": size(x), "count": short(x), "seconds": seconds}.get(unit_kind(metric), f"{x:g}")


def frontier(points: Sequence[tuple[float, float]], lower: bool) -> list[tuple[float, float]]:
    """The points that no other beats in both: none costs as little and is better. From the cheapest on."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], p[1] if lower else -p[1])):
        if not kept or (y < kept[-1][1] if lower else y > kept[-1][1]):
            kept.append((x, y))
    return kept


def trials(tried: Sequence[Trial], colour: int, title: str, xlabel: str,
           limits: tuple[float, float] | None) -> Panel:
    """What each tuned value gave: filled is the chosen one, hollow the others, a cross what failed, and a
    triangle what ended early."""
    def draw(axes: Axes) -> None:
        kinds = list(dict.fromkeys(str(t.x) for t in tried))
        numbers = [float(t.x) for t in tried if isinstance(t.x, (int, float))]
        at = numbers if len(numbers) == len(tried) else [float(kinds.index(str(t.x))) for t in tried]
        if at is numbers:
            _values_axis(axes, sorted(set(at)))
        else:
            axes.set_xticks(range(len(kinds)), shorten(kinds, 10))
            axes.set_xlim(-0.4, len(kinds) - 0.6)
        if limits:
            axes.set_ylim(*limits)
        for x, t in zip(at, tried, strict=True):
            _trial(axes, t, x, tint(colour), limits)
        _dress(axes, title, xlabel)
    return draw


def _values_axis(axes: Axes, values: Sequence[float]) -> None:
    """An axis that shows all tried values, logarithmic where they are far apart, with ticks where few."""
    low, high = values[0], values[-1]
    if low > 0 and high / low >= 8:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(low * (low / high) ** 0.1, high * (high / low) ** 0.1)
    else:
        room = 0.1 * (high - low) or 0.5 * abs(high) or 1.0
        axes.set_xlim(low - room, high + room)
    if len(values) <= 5:
        axes.set_xticks(values)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def _trial(axes: Axes, t: Trial, x: float, colour: str, limits: tuple[float, float] | None) -> None:
    if t.y is None:
        axes.plot([x], [0.95], "x", transform=axes.get_xaxis_transform(), color=BAD, markersize=6,
                  markeredgewidth=1.6)
    elif limits and not limits[0] <= t.y <= limits[1]:
        up = t.y > limits[1]
        axes.annotate(f"{t.y:.4g}", (x, 0.97 if up else 0.03), xycoords=("data", "axes fraction"),
                      xytext=(0, -14 if up else 14), textcoords="offset points", ha="center", va="center",
                      fontsize=8, color=MUTED,
                      arrowprops={"arrowstyle": "-|>", "color": MUTED, "linewidth": 1.0})
    else:
        axes.plot([x], [t.y], "^" if t.pruned else "o", color=colour, markersize=8 if t.chosen else 6,
                  markerfacecolor=colour if t.chosen else PAPER, markeredgewidth=1.5)


def _dress(axes: Axes, title: str, xlabel: str) -> None:
    axes.set_title(title, loc="left", color=MUTED, fontsize=9)
    axes.set_xlabel(xlabel)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(Even(lambda y: f"{float(f'{y:.3e}'):g}"))
