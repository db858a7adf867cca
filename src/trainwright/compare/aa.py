"""What an arm against itself says of a comparison: how often it would have found a difference by chance.

One A/A comparison has one verdict, which says little. Its 2 N runs are alike but for their seeds, so every
way to deal some of them to two sides is an A/A comparison too. The share of these in which the test finds a
difference is what the noise of this suite, as it is and not as the t test assumes it, makes of a promised
5 %.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

from trainwright.compare.statistics import ALPHA

DEALS = 5000
"""Ways to deal the runs, drawn at random."""
SIDE = 5
"""Seeds of each side, as most comparisons have."""


def wrong(values: Sequence[float], seeds: int = SIDE, deals: int = DEALS) -> float:
    """The share of deals in which a paired t test at 5 % tells the two sides apart.

    Args:
        values: one a run, of one arm.
        seeds: of each side; at most half the runs, and at least two.

    Raises:
        ValueError: too few runs, or too few seeds.
    """
    if not 2 <= seeds <= len(values) // 2:
        raise ValueError(f"{len(values)} runs cannot be dealt to two sides of {seeds} seeds.")
    draw = np.random.default_rng(0)
    order = draw.permuted(np.tile(np.asarray(values, dtype=float), (deals, 1)), axis=1)
    differences = order[:, :seeds] - order[:, seeds:2 * seeds]
    error = differences.std(axis=1, ddof=1) / np.sqrt(seeds)
    limit = -float(stdtrit(seeds - 1, ALPHA / 2))
    return float(np.mean(np.abs(differences.mean(axis=1)) > limit * error))


def told(arms: Sequence[dict[str, Any]], compared: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """For the ``result.json`` of an A/A comparison: by metric the share of wrong verdicts among all deals.

    Args:
        arms: the two sides, with their runs.
        compared: the rows of the comparison.
    """
    out = {}
    for row in compared:
        metric = row["metric"]
        values = [r["metrics"][metric] for a in arms for r in a["runs"] if metric in r["metrics"]]
        seeds = min(SIDE, len(values) // 2)
        if row["exact"] or metric == "seconds_per_step" or seeds < 2:
            continue
        out[metric] = {"share": wrong(values, seeds), "deals": DEALS, "seeds": seeds, "runs": len(values)}
    return out
