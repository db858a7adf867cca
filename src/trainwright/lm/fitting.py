"""Fit scaling laws: runs in groups, least squares on logarithms, the bootstrap, and held-out groups.

A row is a run as a dictionary of numbers (``parameters``, ``tokens``, ``lr`` …, see ``planning/runs.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from trainwright.core.context import Context
from trainwright.core.errors import UserError

Row = dict[str, Any]
Made = TypeVar("Made")
SAME = 1.03
"""Factor within which two numbers count as equal: a run's last step is cut off, so equal budgets differ a
bit."""
TELLS = 1e-3
"""Smallest spread of a factor, relative to the others', from which its exponent can be estimated."""


def grouped(rows: Sequence[Row], names: Sequence[str]) -> list[list[Row]]:
    """Groups of rows with equal ``names`` (and corpus, if the rows name one), ordered by these numbers."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    nearest = {name: _steps(sorted(float(r[name]) for r in rows)) for name in names}
    for row in rows:
        key = (*(nearest[name][float(row[name])] for name in names), row.get("data", ""))
        found.setdefault(key, []).append(row)
    return [found[key] for key in sorted(found)]


def _steps(values: list[float]) -> dict[float, float]:
    """Each value's group, named by its smallest member."""
    out: dict[float, float] = {}
    first = values[0]
    for value in values:
        first = first if value <= first * SAME else value
        out[value] = first
    return out


def logs(rows: Sequence[Row], names: Sequence[str]) -> np.ndarray:
    """Natural logarithms: one row per row, one column per name."""
    return np.log(np.array([[float(row[name]) for name in names] for row in rows]))


def linear(x: np.ndarray, y: np.ndarray) -> np.ndarray | None:
    """Least squares, c[0] + x c[1:] closest to y; None if the columns of x are collinear or do not vary."""
    about, mean = x.mean(0), y.mean()
    slope, _, rank, _ = np.linalg.lstsq(x - about, y - mean, rcond=TELLS)
    if rank < x.shape[1] or not np.any(np.ptp(x, axis=0) > np.log(SAME)):
        return None
    return np.concatenate([[mean - about @ slope], slope])


def bootstrap(
    table: np.ndarray,
    estimate: Callable[[np.ndarray], np.ndarray | None],
    ctx: Context,
    key: str,
    times: int = 1000,
) -> np.ndarray:
    """Estimates, one per row, on ``times`` resamples of the table's rows.

    Raises:
        UserError: more than half of the resamples give no estimate; fewer are left out.
    """
    draws = torch.randint(len(table), (times, len(table)), generator=ctx.rng(key, at=0)).numpy()
    found = [made for draw in draws if (made := estimate(table[draw])) is not None]
    if len(found) < times / 2:
        raise UserError(
            f"only {len(table)} runs count for the fit, and most draws from them do not tell the constants "
            "apart: more runs are needed, or more that count as good."
        )
    return np.array(found)


def held_out(
    groups: Sequence[list[Row]],
    fit: Callable[[list[list[Row]]], Made | None],
    error: Callable[[Made, list[Row]], float],
) -> list[float]:
    """The error on each group of a fit to all the others; groups without such a fit are left out."""
    out = []
    for i, group in enumerate(groups):
        made = fit([g for j, g in enumerate(groups) if j != i])
        if made is not None:
            out.append(error(made, group))
    return out


def nearest(rows: Sequence[Row], at: dict[str, float]) -> Row:
    """The row whose numbers are closest to these, by ratio."""
    wanted = np.log(np.array(list(at.values())))
    return rows[int(((logs(rows, list(at)) - wanted) ** 2).sum(1).argmin())]


def at_edge(groups: Sequence[list[Row]], names: Sequence[str]) -> list[str]:
    """A note for each number whose grid ends at some group's best run: the true optimum may lie outside."""
    notes = []
    for name in names:
        best = [
            (min(g, key=lambda r: r["loss"])[name], min(r[name] for r in g), max(r[name] for r in g))
            for g in groups
        ]
        edge = sum(at in (low, high) for at, low, high in best)
        if edge:
            notes.append(
                f"in {edge} of {len(groups)} groups the best run lies at the edge of the grid of {name}: "
                "widen it there"
            )
    return notes


def thin(kept: int, groups: int, near: float) -> list[str]:
    """A note if little more than each group's best run is left to locate its minimum."""
    if kept >= 2 * groups:
        return []
    return [
        f"only {kept} runs in {groups} groups are within near = {near:g} of their group's best, whose place "
        "is noise: make the grid finer, or raise near"
    ]
