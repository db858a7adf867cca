"""Intervals under which one may look after every seed: a comparison that stops once it is decided.

A t interval holds for a number of seeds that was fixed before. Who looks after each seed and stops as soon as
it leaves zero out finds a difference where there is none in far more than one of twenty comparisons. Here the
interval is a confidence sequence: with 95 % it holds the true mean difference at all numbers of seeds at
once, whenever and for whatever reason one stops ("Anytime-valid t-tests and confidence sequences for Gaussian
means with unknown variance", arXiv 2310.03722; "E-statistics, group invariance and anytime-valid testing",
arXiv 2208.07610).

Whatever the true mean m0 is, let t be the t statistic of n differences against it, and r = 1 + n g. Then

    E_n = r^(-1/2) · ((1 + t²/(n-1)) / (1 + t²/((n-1) r)))^(n/2)

is the likelihood of t with effects of δ ~ N(0, g) standard deviations, divided by that without an effect. It
is a martingale that begins at 1, so it ever reaches 1/alpha with a chance of alpha at most (Ville). The
interval holds all m0 that have not reached it, and ``1 / E_n`` against zero is a p value at any time.

Assumed is that the differences come from one bell-shaped distribution, as in ``statistics``. The price of
looking is a wider interval: at ten seeds 1.85 times as wide as the t interval.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from trainwright.compare import statistics
from trainwright.compare.statistics import ALPHA, holm, verdict

SPREAD = 10.0
"""g, the variance of effects in units of that of the differences: seeds of neural networks often differ by
less than the arms do. With 3 to 20 seeds no other value is much better over effects of 0.5 to 8."""
FIRST = 3
"""Seeds at which the interval first has ends."""

Decision = Literal["better", "worse", "no difference", "not decided"]


@dataclass(frozen=True)
class Anytime:
    """What n paired differences, arm minus baseline, say at any time."""

    difference: float
    """Their mean."""
    low: float
    high: float
    """Ends of the interval; infinite with fewer than FIRST seeds."""
    p: float
    """At any time: ``1 / E_n`` against zero, at most 1."""
    sd: float
    n: int


def anytime(differences: Sequence[float], alpha: float = ALPHA) -> Anytime:
    """Mean, interval and p value of paired differences, whenever one looks.

    Args:
        differences: one a seed, arm minus baseline; at least two.
        alpha: the sequence of intervals has the level 1 - alpha, over all times at once.

    Raises:
        ValueError: fewer than two differences, one that is not finite, or ``alpha`` outside (0, 1).
    """
    found = statistics.paired(differences, alpha=alpha)
    n, mean, sd = found.n, found.difference, found.sd
    half = reach(n, alpha)
    half = half * sd / math.sqrt(n) if sd else 0.0 if math.isfinite(half) else math.inf
    t = abs(mean) * math.sqrt(n) / sd if sd else math.inf if mean else 0.0
    return Anytime(mean, mean - half, mean + half, min(1.0, math.exp(-evidence(t, n))), sd, n)


def evidence(t: float, n: int) -> float:
    """The logarithm of E_n for a t statistic of n differences."""
    wide = 1 + n * SPREAD
    x = t * t / (n - 1)
    gain = math.log(wide) if math.isinf(x) else math.log1p(x) - math.log1p(x / wide)
    return n / 2 * gain - math.log(wide) / 2


def reach(n: int, alpha: float = ALPHA) -> float:
    """How large a t statistic may be before ``E_n`` reaches 1 / alpha; infinite where none is large
    enough."""
    wide = 1 + n * SPREAD
    c = (wide / alpha**2) ** (1 / n)
    return math.sqrt((n - 1) * (c - 1) / (1 - c / wide)) if c < wide else math.inf


def decisions(differences: Mapping[str, Sequence[float]], better: Literal["lower", "higher"],
              margin: float | None = None, alpha: float = ALPHA) -> dict[str, Decision]:
    """What is decided on each arm by now; over all arms and all looks a decision is wrong in at most
    ``alpha`` of comparisons.

    A difference is found after Holm's correction of the p values. With a margin there are two ways to be
    wrong, and both share the level evenly between the arms (Bonferroni): a difference is found where the
    interval leaves zero out, and there is none that matters where it lies within the margin.

    Args:
        differences: one a seed, by arm; arms that are decided may have fewer.
        better: which way the metric is better.
        margin: the largest difference that does not matter; None: an arm without a difference stays
            undecided.
    """
    shared = alpha / max(1, len(differences))
    found = {name: anytime(values, shared) for name, values in differences.items()}
    out: dict[str, Decision] = {}
    values = corrected([one.p for one in found.values()], margin)
    for (name, one), p in zip(found.items(), values, strict=True):
        said: Decision = verdict(one.difference, p, better, alpha)
        if said == "no difference" and (margin is None or not -margin < one.low <= one.high < margin):
            said = "not decided"
        out[name] = said
    return out


def corrected(p: Sequence[float], margin: float | None) -> list[float]:
    """The p values of all arms after Holm's correction; with a margin after Bonferroni's."""
    return holm(p) if margin is None else [min(1.0, len(p) * x) for x in p]
