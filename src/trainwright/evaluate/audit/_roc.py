"""How well scores tell members from others: the area under the ROC curve, the share found at few false
alarms, and how sure both are.

A score is higher for a member. With M members m and N others n,

    AUC = #{(m, n): score(m) > score(n)} / (M N), ties counted half
    TPR at FPR <= f = share of the members above the threshold, the lowest one that at most f N others exceed

The false positive rate never lies above the target; where f N < 1 no other may exceed the threshold.
Intervals are of 95 %, percentiles of a bootstrap over the documents of both sides.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from trainwright.core.context import Context

Scores = NDArray[np.float64]
DRAWS = 1000
"""Samples of a bootstrap."""
RATES = {"tpr1": 0.01, "tpr5": 0.05}
"""The false positive rates at which the true ones are told."""
NUMBERS = ("auc", *RATES)


def auc(members: Scores, others: Scores) -> float:
    """Share of the pairs in which the member has the higher score; a tie is half a pair."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, members, side="left")
    ties = np.searchsorted(ordered, members, side="right") - below
    return float((below + ties / 2).sum() / (len(members) * len(others)))


def tpr(members: Scores, others: Scores, rate: float) -> float:
    """Share of the members that are found while at most ``rate`` of the others are taken for members."""
    allowed = int(rate * len(others) + 1e-9)
    threshold = np.sort(others)[len(others) - 1 - allowed] if allowed < len(others) else -np.inf
    return float((members > threshold).mean())


def told(members: Scores, others: Scores) -> Scores:
    """The numbers of ``NUMBERS``."""
    return np.array([auc(members, others), *(tpr(members, others, r) for r in RATES.values())])


def intervals(members: Scores, others: Scores, ctx: Context, key: str, level: float = 0.95) -> Scores:
    """Low and high of each of those numbers, [2, numbers]."""
    rng = ctx.rng(f"bootstrap/{key}", at=0)
    mine, theirs = (torch.randint(len(side), (DRAWS, len(side)), generator=rng).numpy()
                    for side in (members, others))
    found = resampled(members, others, mine, theirs)
    tail = (1 - level) / 2
    return np.quantile(found, [tail, 1 - tail], axis=0)


def resampled(members: Scores, others: Scores, mine: NDArray[np.int64], theirs: NDArray[np.int64]) -> Scores:
    """``told`` of many samples at once, [draws, numbers], given the places that each draws, [draws, texts].

    With how often each text was drawn, W [draws, M] and V [draws, N], and who is above whom, G [M, N], the
    areas are the sums over V * (W G); every score is compared once, not once a draw.
    """
    order = np.argsort(-others, kind="stable")
    times = [np.zeros((len(drawn), size), np.float32)
             for drawn, size in ((mine, len(members)), (theirs, len(others)))]
    for counts, drawn in zip(times, (mine, theirs), strict=True):
        np.add.at(counts, (np.arange(len(drawn))[:, None], drawn), 1)
    w, v = times[0], times[1][:, order]
    falling = others[order]
    above = w @ (members[:, None] > falling).astype(np.float32)
    ties = w @ (members[:, None] == falling).astype(np.float32)
    columns = [(v * (above + ties / 2)).sum(1) / (len(members) * len(others))]
    before = v.cumsum(1)
    for rate in RATES.values():
        first = (before > int(rate * len(others) + 1e-9)).argmax(1)
        columns.append(above[np.arange(len(v)), first] / len(members))
    return np.stack(columns, 1).astype(float)


def numbers(name: str, domain: str, members: Sequence[float], others: Sequence[float],
            ctx: Context) -> dict[str, float]:
    """``NAME_auc/DOMAIN`` and the others of ``NUMBERS``, each with ``_low`` and ``_high``."""
    mine, theirs = np.asarray(members, dtype=float), np.asarray(others, dtype=float)
    values = told(mine, theirs)
    low, high = intervals(mine, theirs, ctx, f"{name}/{domain}")
    out = {}
    for i, what in enumerate(NUMBERS):
        out |= {f"{name}_{what}/{domain}": float(values[i]), f"{name}_{what}_low/{domain}": float(low[i]),
                f"{name}_{what}_high/{domain}": float(high[i])}
    return out
