"""The curve of a loss over training, L(x) = c + a x^-b with a >= 0 and b > 0, and how sure it is ahead.

For each b of a grid c and a are linear, so that the best of them is found without a start that may be wrong;
c is what the curve falls to. It may come out below zero, where no loss is: it is then not to be believed.
"""
from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from trainwright.core.context import Context

EXPONENTS = np.geomspace(0.05, 3.0, 200)
DRAWS = 500
FEWEST = 3
"""Points of the smallest fit; there is an interval from one more on."""


class Curve(NamedTuple):
    """c + a x^-b."""

    c: float
    a: float
    b: float

    def at(self, x: float) -> float:
        return float(self.c + self.a * x**-self.b)


def fit(x: np.ndarray, y: np.ndarray) -> Curve:
    """Least squares on points, [n] each."""
    c, a, b, _ = (each[0] for each in fits(x, y[None]))
    return Curve(float(c), float(a), float(b))


def fits(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The same for many sets of points at once, [sets, n]: c, a, b and the squares that are left, [sets]."""
    best = [np.full(len(y), np.nan) for _ in range(3)] + [np.full(len(y), np.inf)]
    for b in EXPONENTS:
        z = x**-b
        slope = ((y - y.mean(1, keepdims=True)) @ (z - z.mean())) / ((z - z.mean()) ** 2).sum()
        a = np.maximum(slope, 0.0)
        c = y.mean(1) - a * z.mean()
        left = ((y - c[:, None] - a[:, None] * z) ** 2).sum(1)
        better = left < best[3]
        for kept, new in zip(best, (c, a, np.full(len(y), b), left), strict=True):
            kept[better] = new[better]
    return best[0], best[1], best[2], best[3]


def interval(x: np.ndarray, y: np.ndarray, at: float, ctx: Context, key: str) -> tuple[float, float]:
    """95 % of the curves fitted to the points that the curve says, with noise of the size that is left:
    sqrt(sum of squares / (points - 3))."""
    c, a, b, left = (each[0] for each in fits(x, y[None]))
    size = (left / max(len(x) - FEWEST, 1)) ** 0.5
    noise = torch.randn(DRAWS, len(x), generator=ctx.rng(f"curve/{key}", at=0), dtype=torch.float64).numpy()
    drawn = fits(x, (c + a * x**-b) + size * noise)
    found = drawn[0] + drawn[1] * at ** -drawn[2]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def label(name: str) -> float | None:
    """Where in training a snapshot was taken: 500 of ``base@500``, 0.25 of ``base@0.25``."""
    try:
        return float(name.rpartition("@")[2]) if "@" in name else None
    except ValueError:
        return None
