"""An effect against scale: whether it grows, holds or shrinks, and where a straight line leads.

At each of R sizes there are n paired differences, one a seed. With x the logarithm of the scale, a seed's
effects have a least-squares line of their own; its slope, its mean and its value anywhere are weighted sums
of the R differences of that seed. Over the seeds each of them is a sample of n numbers, so that its t
interval holds however much the noise differs from one size to another.

Assumed for the extrapolation alone is that the effect goes on along a straight line over the logarithm of the
scale. Nothing in the numbers can show that.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from scipy.special import stdtr

from trainwright.compare.statistics import ALPHA, Paired, paired

Word = Literal["grows", "holds", "shrinks", "not decided"]
LEAST = 3
"""Sizes that make a ladder: two always lie on a line."""


@dataclass(frozen=True)
class Trend:
    """What became of an effect from the smallest size to the largest."""

    word: Word
    effect: Paired
    """Its mean over the sizes."""
    change: Paired
    """By how much it changes from the smallest size to the largest, along the line."""
    first: Paired
    last: Paired
    """The line at the smallest and at the largest size."""
    beyond: Paired
    """The line at ``scale``: an extrapolation."""
    scale: float
    bent: bool = False
    """Whether the sizes are shown not to lie on a line: the extrapolation is a guess then."""


def trend(scales: Sequence[float], effects: Sequence[Sequence[float]], holds: float = 0.25,
          extrapolate: float = 10.0, arms: int = 1) -> Trend:
    """The trend of an effect over sizes.

    ``holds`` needs an effect, and by two one-sided tests that it changes by less than that share of its mean
    over the sizes; ``grows`` and ``shrinks`` need a change by the two-sided test. All at 5 % shared by the
    arms.

    Args:
        scales: of the sizes, growing, above zero.
        effects: by size, the differences of the same n seeds, at least two.
        extrapolate: how many times the largest scale the line is drawn to.

    Raises:
        ValueError: fewer than three sizes, scales that do not grow, or sizes with other numbers of seeds.
    """
    if len(scales) < LEAST or len(effects) != len(scales):
        raise ValueError(f"a ladder needs the effects of {LEAST} sizes at least, not of {len(scales)}.")
    if any(not 0 < a < b for a, b in pairwise(scales)):
        raise ValueError("the scales of a ladder grow from one size to the next.")
    if len({len(one) for one in effects}) > 1:
        raise ValueError("all sizes of a ladder need the same seeds.")
    x = np.log10(np.asarray(scales, dtype=float))
    d = np.asarray(effects, dtype=float)                   # size, seed
    middle = x - x.mean()
    mean, slope = d.mean(axis=0), middle @ d / float(middle @ middle)
    end = float(x[-1]) + math.log10(extrapolate)
    alpha = ALPHA / arms

    def at(place: float) -> Paired:
        return paired(list(mean + slope * (place - float(x.mean()))))

    change = slope * float(x[-1] - x[0])
    found = Trend("not decided", paired(list(mean)), paired(list(change)), at(float(x[0])), at(float(x[-1])),
                  at(end), 10**end)
    off = d - (mean + slope * middle[:, None])
    bent = _bent(off, float(np.abs(d).max()))
    return replace(found, word=_word(found, mean, change, holds, alpha), bent=bent)


def _bent(off: np.ndarray, most: float) -> bool:
    """Whether the mean distance of any size from the lines of its seeds is not zero, beyond rounding."""
    real = [one for one in off if abs(float(one.mean())) > 1e-9 * most]
    return any(paired(list(one)).p * len(off) < ALPHA for one in real)


def table(t: Trend) -> dict[str, Any]:
    """For ``result.json``: means and 95 % intervals."""
    parts = {name: getattr(t, name) for name in ("effect", "change", "first", "last", "beyond")}
    return {"word": t.word, "p": t.change.p, "scale_beyond": t.scale, "bent": t.bent,
            **{name: {"mean": p.difference, "low": p.low, "high": p.high} for name, p in parts.items()}}


def _word(t: Trend, mean: np.ndarray, change: np.ndarray, holds: float, alpha: float) -> Word:
    if t.effect.p < alpha:
        way = math.copysign(1.0, t.effect.difference)
        room = holds * way * mean
        if _below_zero(way * change - room) < alpha and _below_zero(-way * change - room) < alpha:
            return "holds"
    if t.change.p >= alpha:
        return "not decided"
    # the way of an effect is that of its smaller end where there is one, else that in which it emerges
    end = next((e for e in (t.first, t.last) if e.p < alpha), None)
    end = end or max((t.first, t.last), key=lambda e: abs(e.difference))
    return "grows" if t.change.difference * end.difference > 0 else "shrinks"


def _below_zero(values: np.ndarray) -> float:
    """The one-sided p value of a mean below zero."""
    found = paired(list(values))
    if not found.sd:
        return 0.0 if found.difference < 0 else 1.0
    return float(stdtr(found.n - 1, found.difference / found.sd * math.sqrt(found.n)))
