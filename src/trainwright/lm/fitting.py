"""What laws share in fitting: runs in groups, least squares on logarithms, the bootstrap, groups that are held out."""
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
"""Factor within which two numbers are one setting: the last step of a run is cut off, so that equal budgets differ a little."""
TELLS = 1e-3
"""Smallest spread of a factor, against that of the others, by which its exponent can be told."""


def grouped(rows: Sequence[Row], names: Sequence[str]) -> list[list[Row]]:
    """Rows of one setting (these numbers, and the corpus where the rows name one), in order of their numbers."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    nearest = {name: _steps(sorted(float(r[name]) for r in rows)) for name in names}
    for row in rows:
        key = (*(nearest[name][float(row[name])] for name in names), row.get("data", ""))
        found.setdefault(key, []).append(row)
    return [found[key] for key in sorted(found)]


def _steps(values: list[float]) -> dict[float, float]:
    """Each value's group: the smallest value from which it is not far."""
    out: dict[float, float] = {}
    first = values[0]
    for value in values:
        first = first if value <= first * SAME else value
        out[value] = first
    return out


def logs(rows: Sequence[Row], names: Sequence[str]) -> np.ndarray:
    """Natural logarithms, a row each, a column for each name."""
    return np.log(np.array([[float(row[name]) for name in names] for row in rows]))


def linear(x: np.ndarray, y: np.ndarray) -> np.ndarray | None:
    """Least squares: c[0] + x c[1:] nearest to y; None where x does not tell its columns apart (or does not vary)."""
    about, mean = x.mean(0), y.mean()
    slope, _, rank, _ = np.linalg.lstsq(x - about, y - mean, rcond=TELLS)
    if rank < x.shape[1] or not np.any(np.ptp(x, axis=0) > np.log(SAME)):
        return None
    return np.concatenate([[mean - about @ slope], slope])


def bootstrap(table: np.ndarray, estimate: Callable[[np.ndarray], np.ndarray | None], ctx: Context, key: str,
              times: int = 1000) -> np.ndarray:
    """Estimates (one a row) on ``times`` tables drawn from the rows of this one, with repetition. Draws that say nothing are left
    out.

    Raises:
        UserError: more than half of the draws say nothing.
    """
    draws = torch.randint(len(table), (times, len(table)), generator=ctx.rng(key, at=0)).numpy()
    found = [made for draw in draws if (made := estimate(table[draw])) is not None]
    if len(found) < times / 2:
        raise UserError(f"only {len(table)} runs count for the fit, and most draws from them do not tell the constants apart: "
                        "more runs are needed, or more that count as good.")
    return np.array(found)


def held_out(groups: Sequence[list[Row]], fit: Callable[[list[list[Row]]], Made | None],
             error: Callable[[Made, list[Row]], float]) -> list[float]:
    """For each group its error under what was fitted on all the others; nothing where those do not suffice."""
    out = []
    for i, group in enumerate(groups):
        made = fit([g for j, g in enumerate(groups) if j != i])
        if made is not None:
            out.append(error(made, group))
    return out


def nearest(rows: Sequence[Row], at: dict[str, float]) -> Row:
    """The row whose numbers are nearest to these, by their ratios."""
    wanted = np.log(np.array(list(at.values())))
    return rows[int(((logs(rows, list(at)) - wanted) ** 2).sum(1).argmin())]


def at_edge(groups: Sequence[list[Row]], names: Sequence[str]) -> list[str]:
    """A note for each number whose grid ends at the best run of some group: the true best may lie outside."""
    notes = []
    for name in names:
        best = [(min(g, key=lambda r: r["loss"])[name], min(r[name] for r in g), max(r[name] for r in g)) for g in groups]
        edge = sum(at in (low, high) for at, low, high in best)
        if edge:
            notes.append(f"in {edge} of {len(groups)} groups the best run lies at the edge of the grid of {name}: widen it there")
    return notes


def thin(kept: int, groups: int, near: float) -> list[str]:
    """A note where little more than the best run of each group is left to say where its bottom lies."""
    return [f"only {kept} runs in {groups} groups are within near = {near:g} of their group's best, whose place is noise: make "
            "the grid finer, or raise near"] if kept < 2 * groups else []
