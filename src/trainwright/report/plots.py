"""Plots in one style, drawn on Matplotlib's objects (no pyplot, nothing global). One drawing serves a page,
where its colours follow the reader's light or dark theme, and a PNG that goes into a paper."""
from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, ScalarFormatter

from trainwright.core.shown import plain
from trainwright.report.numbers import short, signed

INK, MUTED, GRID, PAPER = "#1c2530", "#5b6672", "#dfe3e8", "#fefefe"
SERIES = ("#2563a8", "#b45310", "#7b4fa3", "#17807a", "#a83273", "#7a6a1f")
GOOD, BAD = "#1d6f42", "#ad2f3f"
THEME = {INK: "--ink", MUTED: "--muted", GRID: "--line", PAPER: "--card", GOOD: "--good", BAD: "--bad",
         **{c: f"--plot-{i + 1}" for i, c in enumerate(SERIES)}}
"""What a page calls each colour; the drawn one is the fallback."""
RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9.5, "text.color": INK, "text.parse_math": False,
    "axes.edgecolor": GRID, "axes.labelcolor": MUTED, "axes.labelsize": 9, "axes.facecolor": "none",
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelsize": 9, "ytick.labelsize": 9,
    "xtick.major.size": 0, "ytick.major.size": 0, "figure.facecolor": "none", "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round", "path.simplify": True, "svg.fonttype": "none",
}
WIDTH = 5.2
"""Inches of every figure: at this width its letters keep their size both in a column and on a phone."""
MOST = 400
"""Points of a line, more of which nobody could see."""


Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    Args:
        label: written at its end, or nothing.
        raw: the values before smoothing, drawn faint behind it.
        low, high: a band around it (an interval over seeds).
        points: mark each value: few measurements rather than a curve.
        colour: number of its colour in ``SERIES``; below zero the colour of ink.
    """

    label: str
    x: Values
    y: Values
    raw: Values = ()
    low: Values = ()
    high: Values = ()
    points: bool = False
    colour: int = 0


@dataclass(frozen=True)
class Effect:
    """A difference, with its interval where it was repeated over seeds."""

    label: str
    group: str
    value: float
    low: float | None = None
    high: float | None = None
    colour: int = 0
    said: str = ""
    """What stands at the end of its bar, where it is not the value: the words and the sign of the table."""


def tint(colour: int) -> str:
    """A colour by its number; below zero that of ink, which a baseline has."""
    return INK if colour < 0 else SERIES[colour % len(SERIES)]


def curves(lines: Sequence[Line], xlabel: str, ylabel: str, strip: Line | None = None,
           strip_label: str = "") -> Figure:
    """Lines over a common axis; ``strip`` is a small plot below them that shares it (a learning rate)."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(WIDTH, 3.5 if strip else 2.9), layout="constrained")
        if strip:
            axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[4.6, 1])
            below.fill_between(strip.x, 0, strip.y, color=MUTED, alpha=0.18, linewidth=0)
            below.plot(strip.x, strip.y, color=MUTED, linewidth=1.1)
            _axis(below, strip_label, 2)
            most = max([*map(float, strip.y), 1e-12])
            below.set_yticks([0, most], ["0", f"{most:.3g}"])
            below.set_ylim(0, 1.15 * most)
        else:
            axes = below = figure.subplots()
        for line in lines:
            _draw(axes, line)
        _axis(axes, ylabel, 5)
        below.set_xlabel(xlabel)
        whole = all(float(x).is_integer() for line in lines for x in line.x)
        below.xaxis.set_major_locator(MaxNLocator(5, integer=whole))
        below.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
        axes.margins(x=0.02, y=0.08)
        _label_ends(axes, [line for line in lines if line.label and len(line.x)])
    return figure


def _axis(axes: Axes, label: str, ticks: int) -> None:
    axes.set_title(label, loc="left", color=MUTED, fontsize=9)
    axes.yaxis.set_major_locator(MaxNLocator(ticks))
    axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))


def _draw(axes: Axes, line: Line) -> None:
    colour = tint(line.colour)
    if len(line.raw):
        axes.plot(line.x, line.raw, color=colour, alpha=0.28, linewidth=0.8)
    if len(line.low):
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.18, linewidth=0)
    if line.points:
        axes.plot(line.x, line.y, color=colour, linewidth=1.1, linestyle=(0, (3, 2)), marker="o",
                  markersize=4.5, markeredgecolor=PAPER)
    else:
        axes.plot(line.x, line.y, color=colour)


def _label_ends(axes: Axes, lines: Sequence[Line]) -> None:
    """The name of each line at its right end; names that would overlap stand together around their middle."""
    low, high = axes.get_ylim()
    gap = (high - low) * 0.1
    piles: list[tuple[float, list[Line]]] = []
    for line in sorted(lines, key=lambda line: float(line.y[-1])):
        middle, pile = float(line.y[-1]), [line]
        while piles and middle - gap * (len(pile) - 1) / 2 < piles[-1][0] + gap * (len(piles[-1][1]) + 1) / 2:
            other, below = piles.pop()
            pile = below + pile
            middle = (other * len(below) + middle * (len(pile) - len(below))) / len(pile)
            middle = max(middle, low + gap * (len(pile) - 0.5) / 2)     # clear of the axis' numbers
        piles.append((middle, pile))
    right = max((float(line.x[-1]) for line in lines), default=0.0)
    for middle, pile in piles:
        for i, line in enumerate(pile):
            y = middle + gap * (i - (len(pile) - 1) / 2)
            axes.annotate(line.label, (right, y), xytext=(7, 0), textcoords="offset points", va="center",
                          annotation_clip=False, color=tint(line.colour), fontsize=9.5)


def effects(rows: Sequence[Effect], worse: str, better: str) -> Figure:
    """Differences from a baseline as bars from zero, better to the right, each group under its heading."""
    groups = list(dict.fromkeys(row.group for row in rows))
    style = {"font.size": 10, "xtick.labelsize": 9, "ytick.labelsize": 10, "ytick.color": INK}
    with matplotlib.rc_context(RC | style):
        figure = Figure(figsize=(WIDTH, 0.7 + 0.36 * len(rows) + 0.48 * len(groups)), layout="constrained")
        axes = figure.subplots()
        axes.grid(False)
        y, ticks = 0.0, []
        for group in groups:
            axes.annotate(group, (0, y), xycoords=("axes fraction", "data"), xytext=(-6, 0),
                          textcoords="offset points", ha="right", va="center", fontweight="bold",
                          annotation_clip=False)
            for row in (r for r in rows if r.group == group):
                y += 1
                ticks.append((y, row.label))
                _bar(axes, row, y)
            y += 1.35
        axes.set_yticks([at for at, _ in ticks], [label for _, label in ticks])
        axes.set_ylim(y - 0.75, -0.6)
        most = max([abs(x) for r in rows for x in (r.value, r.low or 0.0, r.high or 0.0)] + [1e-3])
        least = min([x for r in rows for x in (r.value, r.low or 0.0)] + [0.0])
        longest = max(len(r.said or signed(r.value)) for r in rows)
        part = min(0.36, 0.03 + 0.017 * longest)                       # of the axis, that a text takes
        room = part * (most - least) / (1 - part * (2 if least else 1))
        axes.set_xlim(least - (room if least else 0.04 * most), most + room)
        axes.axvline(0, color=MUTED, linewidth=0.9)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _signed_tick(x)))
        axes.set_xlabel(f"{better} →", loc="right")
        if least:
            axes.annotate(f"← {worse}", (0, 0), xycoords=("axes fraction", axes.xaxis.label), ha="left",
                          va="bottom", color=MUTED, fontsize=9)
    return figure


def _signed_tick(x: float) -> str:
    """A difference on an axis."""
    return signed(round(x, 6)).rstrip("0").rstrip(".") if x else "0"


def _bar(axes: Axes, row: Effect, y: float) -> None:
    colour = tint(row.colour)
    axes.barh(y, row.value, height=0.62, color=colour, alpha=0.9)
    ends = [row.value]
    if row.low is not None and row.high is not None:
        axes.plot([row.low, row.high], [y, y], color=INK, linewidth=1.3)
        ends += [row.low, row.high]
    end = max(ends) if row.value >= 0 else min(ends)
    axes.annotate(row.said or signed(row.value), (end, y), xytext=(4 if row.value >= 0 else -4, 0),
                  textcoords="offset points", va="center", ha="left" if row.value >= 0 else "right",
                  fontsize=9.5, color=INK)


def training(rows: Sequence[dict[str, Any]], colours: dict[str, int]) -> Figure | None:
    """Loss over tokens (or steps, where tokens are not counted), evaluations on the way, the learning rate.

    Args:
        rows: those of ``metrics.jsonl``.
        colours: of the domains, the same in all plots of a page.
    """
    rows = [r for r in rows if np.isfinite(r.get("loss", np.nan))]
    if not rows:
        return None
    by = "tokens" if rows[-1].get("tokens") else "step"
    loss = np.array([r["loss"] for r in rows])
    kept = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST)).round().astype(int))
    x = np.array([float(r[by]) for r in rows])
    lines = [Line("training", x[kept], smooth(loss, len(rows) / 60)[kept], raw=extremes(loss, kept))]
    names = sorted({n for r in rows for n in r if n.startswith("eval/loss/")})
    for name in names:
        seen = [(float(r[by]), r[name]) for r in rows if np.isfinite(r.get(name, np.nan))]
        domain = name.removeprefix("eval/loss/")
        if seen:
            at, measured = zip(*seen, strict=True)
            lines.append(Line(domain, at, measured, points=True, colour=colours.get(domain, 5)))
    rates = np.array([r.get("lr", 0.0) for r in rows])
    strip = Line("", x[kept], rates[kept]) if rates.any() else None
    return curves(lines, by if by == "tokens" else "steps", "loss", strip, "learning rate")


def smooth(y: np.ndarray, window: float) -> np.ndarray:
    """Mean over about ``window`` neighbours on both sides, with exponential weights: it does not lag."""
    keep = 1 - 1 / max(1.0, window)
    sums = []
    for one_way in (y, y[::-1]):
        total, weight, out = 0.0, 0.0, np.empty((len(y), 2))
        for i, one in enumerate(one_way):
            total, weight = keep * total + one, keep * weight + 1.0
            out[i] = total, weight
        sums.append(out)
    both = sums[0] + sums[1][::-1]
    mean: np.ndarray = (both[:, 0] - y) / (both[:, 1] - 1)        # the value itself was in both sums
    return mean


def extremes(y: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """``y`` at the kept places, or rather the lowest and the highest of their surroundings in turn, so that
    no spike is lost."""
    if len(kept) == len(y):
        return y
    parts = np.split(y, kept[1:])
    return np.array([part.max() if i % 2 else part.min() for i, part in enumerate(parts)])


def png(figure: Figure, path: Path) -> Path:
    """A picture on white, sharp enough to print."""
    with matplotlib.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")     # a domain's name may have letters that the font lacks
        figure.savefig(path, dpi=200, facecolor="white", metadata={"Software": None})
    figure.set_layout_engine("none")                   # it is laid out: another format need not do it again
    return path


def svg(figure: Figure, name: str, label: str) -> str:
    """The drawing as inline SVG: real text, colours of the page's theme, ids that no other drawing has."""
    held = io.StringIO()
    with matplotlib.rc_context(RC | {"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(held, format="svg", metadata=nothing)
    text = held.getvalue()
    text = text[text.index("<svg"):]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", lambda tag: _themed(tag[0], re.sub(r"\W", "-", name)), text)
    box = re.search(r'viewBox="[^"]+"', text)
    assert box is not None
    head = (f'<svg {box[0]} class="plot" role="img" aria-label="{html.escape(label)}" '
            'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">')
    return plain(re.sub(r"<svg[^>]*>", lambda _: head, text, count=1), lines=True)


def _themed(tag: str, prefix: str) -> str:
    """A tag with ids of its drawing's own and the theme's colours; the text between tags stays as it is."""
    tag = re.sub(r'(?<= id=")(?=[^"]+")', f"{prefix}-", tag)
    tag = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", tag)
    for colour, variable in THEME.items():
        tag = tag.replace(colour, f"var({variable}, {colour})")
    return tag
