"""A table of numbers as a picture: a cell's colour is its number."""
from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

MOST = 24
"""Rows and columns up to which cells have their numbers written in them."""


def heat_map(values: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str) -> bytes:
    """A PNG of a matrix [rows, columns]; blue is below zero, orange above."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    most = float(np.nanmax(np.abs(values))) or 1.0
    colours = LinearSegmentedColormap.from_list("change", ["#2563a8", "#fefefe", "#b45310"])
    figure = Figure(figsize=(1.6 + 0.75 * len(columns), 1.1 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(values, cmap=colours, vmin=-most, vmax=most, aspect="auto")
    axes.set_xticks(range(len(columns)), [_plain(c) for c in columns], rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), [_plain(r) for r in rows])
    axes.set_title(title, loc="left", fontsize=10)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    if max(values.shape) <= MOST:
        for (i, j), x in np.ndenumerate(values):
            axes.text(j, i, f"{x:+.2f}".replace("-", "\u2212"), ha="center", va="center", fontsize=8,
                      color="white" if abs(x) > 0.7 * most else "#1c2530")
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return held.getvalue()


def _plain(name: str) -> str:
    """A name without the signs that Matplotlib reads as mathematics."""
    return name.replace("$", "")
