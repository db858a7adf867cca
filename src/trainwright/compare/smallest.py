"""The smallest setting that is nearly as good: which arm of a comparison reaches a share of the baseline.

With a number that differs between arms (``intrinsic_dimension.dimension``, ``lora.rank``) and a score of
which more is better, mean over the seeds,

    smallest = the lowest number of an arm whose score is at least  share x the baseline's score.

With ``intrinsic_dimension`` and a share of 0.9 this is d_int90 of "Measuring the Intrinsic Dimension of
Objective Landscapes" (arXiv 1804.08838). A score of 0 must mean that nothing was learned: an accuracy is
taken as it is, and of a loss, which has no such zero, its ``gain`` over the model that all arms start from.
The numbers tried are those of the comparison: the true one lies between what is found and the one before it.
"""
from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainwright.core.errors import UserError, suggest
from trainwright.core.metrics import direction


@dataclass(frozen=True)
class Smallest:
    """What was found."""

    number: float | None
    """The smallest that reaches the share, or None where none does."""
    below: float | None
    """The largest below it that was tried and does not."""
    baseline: float
    """The baseline's score."""
    threshold: float
    """The score that has to be reached."""
    scores: dict[float, float]
    """The score of each number, in order."""
    by_seed: tuple[float | None, ...]
    """What each seed alone would have found."""


def smallest(result: dict[str, Any], setting: str, share: float = 0.9) -> Smallest:
    """The smallest number of ``setting`` (METHOD.SETTING) that reaches the share, in a comparison's result.

    Raises:
        UserError: a share out of range; no arm has the setting, or two have the same number; a metric without
            a zero.
    """
    if not 0 < share <= 1:
        raise UserError(f"share must be above 0 and at most 1, not {share}.")
    having = [(number, arm) for arm in result["arms"] if (number := _number(arm, setting)) is not None]
    arms = dict(having)
    base = next(a for a in result["arms"] if a["name"] == result["baseline"])
    if not arms or len(arms) < len(having):
        known = [f"{m['use']}.{k}" for a in result["arms"] for m in a["stage"]["methods"] for k in m]
        why = "two have the same" if arms else f"no arm has it{suggest(setting, known)}"
        raise UserError(f"{setting} must be a number that differs between arms: {why}.")
    name = score_of(result)
    reference, found = _scores(base, name), {n: _scores(arms[n], name) for n in sorted(arms)}
    seeds = sorted(set(reference).intersection(*found.values()))
    if not seeds:
        raise UserError(f"no seed of the comparison has {name} for all arms.")
    baseline, scores = _mean(reference, seeds), {n: _mean(of, seeds) for n, of in found.items()}
    number = first(scores, share * baseline)
    return Smallest(
        number=number,
        below=max((n for n in scores if number is None or n < number), default=None),
        baseline=baseline,
        threshold=share * baseline,
        scores=scores,
        by_seed=tuple(first({n: found[n][s] for n in found}, share * reference[s]) for s in seeds),
    )


def first(scores: dict[float, float], threshold: float) -> float | None:
    """The lowest number whose score reaches the threshold."""
    return min((n for n, score in scores.items() if score >= threshold), default=None)


def score_of(result: dict[str, Any]) -> str:
    """The number of each run of which a share makes sense: the metric, or the gain that belongs to a loss."""
    metric: str = result["metric"]
    kind, _, domain = metric.partition("/")
    if direction(kind) == "higher":
        return metric
    gain = f"gain/{domain}"
    if kind == "loss" and any(gain in run["metrics"] for arm in result["arms"] for run in arm["runs"]):
        return gain
    raise UserError(
        f"of {metric} no share can be taken: name an accuracy as the metric, or a loss of a domain that is "
        "new to a model from which all arms start."
    )


def _number(arm: dict[str, Any], setting: str) -> float | None:
    method, _, key = setting.partition(".")
    found = [m.get(key) for m in arm["stage"]["methods"] if m["use"] == method]
    return found[0] if found and isinstance(found[0], int | float) else None


def _scores(arm: dict[str, Any], name: str) -> dict[int, float]:
    """The score of each seed; an arm that failed has none."""
    return {run["seed"]: run["metrics"][name] for run in arm["runs"] if name in run["metrics"]}


def _mean(scores: dict[int, float], seeds: Sequence[int]) -> float:
    return statistics.mean(scores[s] for s in seeds)
