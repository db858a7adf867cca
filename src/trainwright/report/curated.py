"""What a corpus kept: documents in and out of each method, and those kept by domain and by length."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from rich.table import Table
from rich.text import Text

from trainwright.report.numbers import count, short
from trainwright.report.plots import GRID, INK, MUTED, RC, WIDTH, tint

MOST = 12
"""Bars of a plot; domains that have fewer documents are summed up."""


def table(figures: dict[str, Any]) -> Table:
    """Documents in and out of each method, for the terminal."""
    out = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("method", "in", "written", "dropped", "out"):
        out.add_column(column, justify="left" if column == "method" else "right")
    for row in figures["curated"]:
        counts = (f"{row[k]:,}" if row[k] else "" for k in ("in", "written", "dropped"))
        out.add_row(Text(f"{row['method']}"), *counts, f"{row['out']:,}")
    return out


def selects(figures: dict[str, Any]) -> bool:
    """Whether some method dropped documents, so that there is something to draw."""
    return any(row["dropped"] for row in figures.get("curated", ()))


def figure(figures: dict[str, Any], colour: int = 0) -> Figure:
    """Kept documents among all, by domain and by length; ``figures`` are those of a corpus artifact."""
    bars = fewer(figures["kept"]["domains"])
    with matplotlib.rc_context(RC | {"ytick.color": INK}):
        drawn = Figure(figsize=(WIDTH, 2.6 + 0.32 * len(bars)), layout="constrained")
        above, below = drawn.subplots(2, 1, height_ratios=[0.5 + 0.32 * len(bars), 2.0])
        _bars(above, bars, tint(colour))
        _lengths(below, figures["kept"]["lengths"], tint(colour))
    return drawn


def label(figures: dict[str, Any]) -> str:
    """What the figure shows, in a sentence."""
    every, kept = (sum(pair[i] for pair in figures["kept"]["domains"].values()) for i in (0, 1))
    return f"{kept:,} of {every:,} documents were kept."


def fewer(bars: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """The largest domains, and the sum of the others."""
    if len(bars) <= MOST:
        return dict(bars)
    largest = sorted(bars, key=lambda g: -bars[g][0])[:MOST - 1]
    rest = [bars[g] for g in bars if g not in largest]
    sums = sum(n for n, _ in rest), sum(k for _, k in rest)
    return {g: bars[g] for g in sorted(largest)} | {f"{len(rest)} others": sums}


def _bars(axes: Axes, bars: Mapping[str, Sequence[int]], colour: str) -> None:
    axes.grid(False)
    axes.set_title("documents kept, by domain", loc="left", color=MUTED, fontsize=9)
    most = max(n for n, _ in bars.values())
    for y, (total, kept) in enumerate(bars.values()):
        axes.barh(y, total, height=0.62, color=GRID)
        axes.barh(y, kept, height=0.62, color=colour)
        share = "all" if kept == total else f"{kept / total:.0%}"
        said = f"{share} of {count(total)}"
        axes.annotate(said, (total, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(bars)), list(bars))
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0, 1.28 * most)
    axes.set_xticks([])


def _lengths(axes: Axes, lengths: dict[str, list[float]], colour: str) -> None:
    axes.set_title("documents by length: all, and those that were kept", loc="left", color=MUTED, fontsize=9)
    edges = np.array(lengths["edges"])
    for numbers, shade in ((lengths["all"], GRID), (lengths["kept"], colour)):
        axes.bar(edges[:-1], numbers, np.diff(edges), align="edge", color=shade)
    axes.set_xscale("log")
    axes.set_xlabel("characters")
    axes.tick_params(axis="x", pad=5)                          # clear of the zero beside it
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: short(y)))
