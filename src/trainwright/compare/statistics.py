"""Paired t statistics of a comparison: intervals, p values, Holm's correction, power and the noise floor.

An arm and the baseline run with the same seeds, so that only their n differences count, one a seed. With the
3 to 10 seeds of a comparison the t interval is used and no bootstrap: at n = 5 a percentile bootstrap that
says 95 % covers about 83 % (``tests/compare/test_statistics.py`` measures it).

Assumed is that the differences come from one bell-shaped distribution. Heavy tails make the test cautious.
So does noise that is skewed alike in both arms, as it cancels in the difference. What breaks it is an arm
that alone has rare, very bad seeds: its verdict is then wrong more often than announced (one arm, n = 5:
about 18 % instead of 5 % where its noise is lognormal with σ = 1 and the baseline has next to none).
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammainc, stdtr, stdtrit

ALPHA = 0.05
"""Share of comparisons without a true difference in which one is nevertheless found."""
POWER = 0.8
"""Share of comparisons with a true difference of ``detectable`` in which it is found."""

Verdict = Literal["better", "worse", "no difference"]


@dataclass(frozen=True)
class Paired:
    """The result of n paired differences, arm minus baseline, in the units of the metric but for ``p``."""

    difference: float
    """Their mean."""
    low: float
    """Lower end of the two-sided interval at 1 - alpha."""
    high: float
    """Its upper end."""
    p: float
    """Of the two-sided paired t test, not corrected for the number of arms."""
    sd: float
    """Their standard deviation, over n - 1."""
    n: int
    detectable: float
    """The smallest true difference that n seeds with this ``sd`` find with a power of 0.8, at Holm's
    strictest level."""


def paired(differences: Sequence[float], arms: int = 1, alpha: float = ALPHA) -> Paired:
    """Mean, interval and test of paired differences.

    Where all of them are equal, ``p`` is 1 if they are zero and 0 if not, and the interval is a point.

    Args:
        differences: one a seed, arm minus baseline; at least two.
        arms: how many are compared with this baseline: Holm's strictest level is ``alpha / arms``. It changes
            ``detectable`` only.
        alpha: the interval has the level 1 - alpha.

    Raises:
        ValueError: fewer than two differences, one that is not finite, ``arms`` below 1, or ``alpha`` outside
            (0, 1).
    """
    values = _numbers(differences, "a paired comparison")
    _check_level(alpha)
    if arms < 1:
        raise ValueError(f"arms is {arms}; at least one arm is compared.")
    n = len(values)
    mean, sd = _moments(values)
    half = -float(stdtrit(n - 1, alpha / 2)) * sd / math.sqrt(n)
    if sd:
        p = 2 * float(stdtr(n - 1, -abs(mean / sd) * math.sqrt(n)))
    else:
        p = 0.0 if mean else 1.0
    return Paired(mean, mean - half, mean + half, p, sd, n, detectable(sd, n, alpha / arms))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down p values, in the order given.

    Where those below ``alpha`` count as found, at most that share of families has a wrong one among them.
    The i-th smallest of m is multiplied by m - i + 1, and none may fall below the one before it. "A Simple
    Sequentially Rejective Multiple Test Procedure", Holm 1979.

    Raises:
        ValueError: a p value outside [0, 1].
    """
    if wrong := [x for x in p if not 0 <= x <= 1]:
        raise ValueError(f"a p value lies between 0 and 1, not at {wrong[0]}.")
    adjusted, least = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        least = max(least, min(1.0, (len(p) - rank) * float(p[i])))
        adjusted[i] = least
    return adjusted


def verdict(mean: float, adjusted: float, better: Literal["lower", "higher"],
            alpha: float = ALPHA) -> Verdict:
    """What a mean difference, arm minus baseline, says at an adjusted p value.

    Raises:
        ValueError: a mean that is not finite, or a p value outside [0, 1].
    """
    _check_level(alpha)
    if not math.isfinite(mean):
        raise ValueError(f"the mean difference is {mean}; there is no verdict without a number.")
    if not 0 <= adjusted <= 1:
        raise ValueError(f"a p value lies between 0 and 1, not at {adjusted}.")
    if adjusted >= alpha or not mean:
        return "no difference"
    return "better" if (mean < 0) == (better == "lower") else "worse"


def power(effect: float, sd: float, n: int, alpha: float = ALPHA) -> float:
    """The chance that the two-sided paired t test at ``alpha`` finds a true mean difference of ``effect``.

    Args:
        effect: in the units of ``sd``, which is that of the differences.
        n: seeds, at least two.

    Raises:
        ValueError: n below 2, a negative or non-finite ``sd``, a non-finite ``effect``, or ``alpha`` outside
            (0, 1).
    """
    _check_sd(sd, n)
    _check_level(alpha)
    if not math.isfinite(effect):
        raise ValueError(f"effect is {effect}; it is a finite number.")
    if not sd:
        return 1.0 if effect else 0.0
    return _power(abs(effect / sd) * math.sqrt(n), n - 1, -float(stdtrit(n - 1, alpha / 2)))


def detectable(sd: float, n: int, alpha: float = ALPHA, power: float = POWER) -> float:
    """The smallest true mean difference that n seeds find with this power; zero where nothing varies.

    Args:
        sd: of the differences.
        n: seeds, at least two.
        power: above ``alpha``: a test finds that much where there is nothing.

    Raises:
        ValueError: n below 2, a negative or non-finite ``sd``, ``alpha`` outside (0, 1), or ``power`` outside
            (alpha, 1).
    """
    _check_sd(sd, n)
    _check_level(alpha)
    if not alpha < power < 1:
        raise ValueError(f"power is {power}; it lies between alpha ({alpha}) and 1.")
    return sd * _detectable_in_sd(n, alpha, power)


def noise_floor(values: Sequence[float]) -> float:
    """How far apart the means of two independent sets of n seeds of the *same* arm may lie, from one set.

    Half the 95 % interval of their difference: ``t(0.975, n - 1) · sd · sqrt(2 / n)``.

    Raises:
        ValueError: fewer than two values, or one that is not finite.
    """
    found = _numbers(values, "a noise floor")
    n = len(found)
    return -float(stdtrit(n - 1, ALPHA / 2)) * _moments(found)[1] * math.sqrt(2 / n)


def _numbers(values: Sequence[float], what: str) -> np.ndarray:
    found: np.ndarray = np.asarray(values, dtype=float)
    if found.ndim != 1 or len(found) < 2:
        raise ValueError(f"{what} needs the numbers of at least two seeds, not of {found.size}.")
    if not np.isfinite(found).all():
        raise ValueError(f"{what} needs finite numbers, not {found[~np.isfinite(found)][0]}.")
    return found


def _moments(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation (over n - 1), exact where all are equal, and without overflow."""
    if values.min() == values.max():
        return float(values[0]), 0.0
    scale = float(np.abs(values).max())
    return float((values / scale).mean()) * scale, float((values / scale).std(ddof=1)) * scale


def _check_level(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; it lies between 0 and 1.")


def _check_sd(sd: float, n: int) -> None:
    if n < 2:
        raise ValueError(f"n is {n}; a paired test needs at least two seeds.")
    if not (math.isfinite(sd) and sd >= 0):
        raise ValueError(f"sd is {sd}; a standard deviation is finite and not negative.")


STEP = 0.01
NORMAL = np.arange(-900, 901) * STEP
"""Nodes of the integral in ``_power``; ``DENSITY`` is the density times the step. It is exact to 5e-7."""
DENSITY = np.exp(-NORMAL**2 / 2) * STEP / math.sqrt(2 * math.pi)


def _power(noncentrality: float, freedom: int, critical: float) -> float:
    """Both tails of the noncentral t beyond ``critical``.

    ∫ φ(z) P(χ² < freedom · ((z + noncentrality) / critical)²) dz, because ``nctdtr`` of SciPy 1.17, and so
    its ``stats.nct``, gives nan for many small tails: -6 at 4 degrees and 7.3 is one.
    """
    # further away nothing changes, and squares would overflow
    distance = NORMAL + min(noncentrality, 1e9)
    return float(DENSITY @ gammainc(freedom / 2, freedom / 2 * (distance / critical) ** 2))


@lru_cache(maxsize=256)
def _detectable_in_sd(n: int, alpha: float, power: float) -> float:
    critical = -float(stdtrit(n - 1, alpha / 2))
    high = 1.0
    while _power(high, n - 1, critical) < power:
        high *= 2
    return float(brentq(lambda x: _power(x, n - 1, critical) - power, 0.0, high, xtol=1e-10)) / math.sqrt(n)
