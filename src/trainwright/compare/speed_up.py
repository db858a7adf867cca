"""How many times fewer tokens an arm needs than the baseline for the same loss.

After "Fantastic Pretraining Optimizers and Where to Find Them" (arXiv 2509.02046). The baseline, tuned, is
trained to the end for several budgets; an arm for a budget of T tokens. Of each seed, with L the losses at
the end of training (those on the way say little, since the rate has not decayed),

    speed-up = T_base(L_arm(T)) / T,    T_base(L): the tokens at which the baseline would reach the loss L,

by straight lines between its budgets over log tokens and log loss, which a power law is; beyond the first and
the last budget the nearest line goes on, and the answer is an extrapolation. The mean and its interval (95 %,
t, over the seeds) are of the logarithm of the factor. A factor of 1.4 saves 29 % of the tokens.
"""
from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from trainwright.compare.statistics import paired
from trainwright.core.errors import UserError


@dataclass(frozen=True)
class SpeedUp:
    """What one arm saves at one budget."""

    arm: str
    tokens: float
    """The arm's budget."""
    factor: float
    """The baseline's tokens for the same loss over the arm's."""
    low: float
    high: float
    """Its 95 % interval over the seeds."""
    by_seed: tuple[float, ...]
    beyond: bool
    """Whether a seed's loss is outside of what the baseline reached, so that the factor is extrapolated."""


def tokens_for(loss: float, budgets: Sequence[float], losses: Sequence[float]) -> float:
    """The tokens at which the baseline would reach a loss.

    Args:
        budgets: in tokens, growing.
        losses: at the end of a run of each.

    Raises:
        UserError: its loss does not fall where tokens would have to be read off.
    """
    x, y = [math.log(b) for b in budgets], [math.log(v) for v in losses]
    if any(a <= b for a, b in pairwise(y)):
        raise UserError("the baseline's loss does not fall from one budget to the next, so that no number of "
                        "tokens belongs to a loss: take budgets that are further apart, or more seeds.")
    wanted = math.log(loss)
    at = next((i for i in range(1, len(y)) if wanted >= y[i]), len(y) - 1)
    slope = (x[at] - x[at - 1]) / (y[at] - y[at - 1])
    return math.exp(x[at - 1] + slope * (wanted - y[at - 1]))


def speed_up(arm: str, tokens: float, losses: Sequence[float], budgets: Sequence[float],
             baseline: Sequence[Sequence[float]]) -> SpeedUp:
    """The speed-up of an arm.

    Args:
        tokens: of each of its runs.
        losses: at their ends, one a seed.
        budgets: of the baseline, two at least, growing.
        baseline: for each budget its losses, one a seed, in the same order.

    Raises:
        UserError: fewer than two budgets or seeds; a baseline that does not get better.
    """
    if len(budgets) < 2 or len(losses) < 2 or any(len(one) != len(losses) for one in baseline):
        raise UserError("a speed-up needs the baseline at two budgets at least, and all with the same seeds, "
                        "two or more.")
    curves = list(zip(*baseline, strict=True))
    factors = [tokens_for(loss, budgets, curve) / tokens for loss, curve in zip(losses, curves, strict=True)]
    beyond = any(not min(curve) <= loss <= max(curve) for loss, curve in zip(losses, curves, strict=True))
    found = paired([math.log(f) for f in factors])
    return SpeedUp(arm, tokens, *(math.exp(v) for v in (found.difference, found.low, found.high)),
                   tuple(factors), beyond)


def of_results(results: Sequence[dict[str, Any]]) -> list[SpeedUp]:
    """The speed-ups of all arms at all budgets, from the results of one comparison at several of them.

    Raises:
        UserError: comparisons of other things, a metric that is no loss, or budgets that are not in tokens.
    """
    head = results[0]
    for name in ("metric", "baseline"):
        if any(r[name] != head[name] for r in results):
            raise UserError(f"these are no results of one comparison: {name} is "
                            f"{' and '.join(sorted({r[name] for r in results}))}.")
    if head["metric"].partition("/")[0] != "loss":
        raise UserError(f"a speed-up is of a loss, and the metric is {head['metric']}.")
    if any(r["budget"]["currency"] != "tokens" for r in results):
        raise UserError("a speed-up is in tokens: give the comparison budgets in tokens.")
    ordered = sorted(results, key=lambda r: float(r["budget"]["amount"]))
    budgets = [float(r["budget"]["amount"]) for r in ordered]
    sizes = {_of(r, head["baseline"])["parameters"] for r in results}
    if len(set(budgets)) < len(budgets) or len(sizes) > 1:
        raise UserError("the results of one size of model at different budgets make a speed-up; these have "
                        f"{' and '.join(f'{b:g}' for b in budgets)} tokens and {len(sizes)} sizes.")
    base = [_losses(r, head["baseline"]) for r in ordered]
    names = [a["name"] for a in head["arms"] if a["name"] != head["baseline"]]
    found = []
    for name in names:
        for r, tokens in zip(ordered, budgets, strict=True):
            mine = _losses(r, name)
            seeds = sorted(set(mine).intersection(*base))
            if len(seeds) > 1:
                found.append(speed_up(name, tokens, [mine[s] for s in seeds], budgets,
                                      [[one[s] for s in seeds] for one in base]))
    return found


def _of(result: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next((a for a in result["arms"] if a["name"] == name), {"runs": []})
    return found


def _losses(result: dict[str, Any], name: str) -> dict[int, float]:
    """The loss of each seed of an arm, without runs that failed."""
    metric = result["metric"]
    return {r["seed"]: r["metrics"][metric] for r in _of(result, name)["runs"] if metric in r["metrics"]}


def sentence(found: SpeedUp) -> str:
    """What it says, in a line."""
    beyond = ", extrapolated beyond the baseline's budgets" if found.beyond else ""
    middle = statistics.median(found.by_seed)
    return (f"{found.arm} at {found.tokens:,.0f} tokens: {found.factor:.2f} times as fast "
            f"[{found.low:.2f}, {found.high:.2f}], median of {len(found.by_seed)} seeds {middle:.2f}{beyond}")
