"""The law over several domains: a term that falls with how easy a domain is to learn, and its fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.lm.fitting import Row
from trainwright.search.d_cpt_law._shares import (
    Constants,
    Floats,
    Runs,
    Terms,
    center,
    groups,
    least,
    moved,
    numbers_of,
    parted,
    starts,
    terms_of,
)

FALLS = (0.3, 1.0)
"""Exponents of the learnability to start from."""


class Across(NamedTuple):
    """f / K^mu, for a domain of the learnability K."""

    f: float
    mu: float

    def loss(self, k: float) -> float:
        return float(self.f / k**self.mu)


class Found(NamedTuple):
    """The constants of all domains, and what tells them apart."""

    constants: Constants
    across: Across


class Several(NamedTuple):
    """Runs of several domains."""

    domain: Runs
    general: Runs
    k: Floats
    """The learnability of each run's domain."""
    name: list[str]
    """The domain of each run."""


def several(rows: Sequence[Row], learnability: Mapping[str, float], general: str, law: str) -> Several:
    """The runs of all domains whose learnability is known.

    Raises:
        UserError: a row of none of them, or a wrong one; fewer than three domains that differ.
    """
    found, names = [], list[str]()
    for number, row in enumerate(rows, 1):
        mine = [name for name in learnability if row.get(f"mixture.weights.{name}")]
        mine = mine or [name for name in learnability if f"loss/{name}" in row]
        if len(mine) != 1:
            raise UserError(f"{law}: row {number} is a run of {len(mine)} of the domains "
                            f"{', '.join(learnability)}; it must be of one of them and {general}.")
        names += mine
        found.append(numbers_of(row, number, mine[0], general, law))
    domain, other = parted(found, law)
    k = np.array([learnability[name] for name in names])
    if len(groups(k)) < 3:
        raise UserError(f"{law}: the runs are of {len(groups(k))} learnabilities; a law across domains needs "
                        "three domains at least that differ in it.")
    return Several(domain, other, k, names)


def solve_across(runs: Runs, k: Floats, epsilon: float, start: Found | None = None) -> Found:
    """The constants with the least Huber loss of logarithms, from ``start`` or else from several points."""
    middle, k_middle = center(runs), float(np.exp(np.log(k).mean()))
    if start is not None:
        begins = [np.append(moved(start.constants, middle, 1),
                            [start.across.loss(k_middle), start.across.mu])]
    else:
        begins = [np.append(x * np.append(0.8, np.ones(7)), [0.2 * x[0], fall])
                  for x in starts(float(runs.loss.min())) for fall in FALLS]
    best = least(_terms(runs, np.log(k / k_middle), epsilon, middle), runs.loss, begins)
    f, mu = best[8:].tolist()
    return Found(Constants(*moved(Constants(*best[:8].tolist()), middle, -1).tolist()),
                 Across(f * k_middle**mu, mu))


def _terms(runs: Runs, log_k: Floats, epsilon: float, middle: tuple[float, float]) -> Terms:
    inner = terms_of(runs, epsilon, middle)

    def terms(x: Floats) -> tuple[Floats, Floats]:
        made, columns = inner(x[:8])
        more = x[8] * np.exp(-x[9] * log_k)
        return made + more, np.column_stack([columns, more, -x[9] * log_k * more])

    return terms


def predicted(found: Found, runs: Runs, k: Floats, epsilon: float) -> Floats:
    """The losses that the law gives these runs."""
    made: Floats = found.constants.loss(runs.n, runs.d, runs.r, epsilon)
    return made + found.across.f / k**found.across.mu


def redrawn_across(runs: Several, found: Found, epsilon: float, times: int, ctx: Context,
                   key: str) -> list[Found]:
    """The constants on ``times`` tables with resampled residuals."""
    told = predicted(found, runs.domain, runs.k, epsilon)
    left = np.log(runs.domain.loss / told) * np.sqrt(len(told) / max(1, len(told) - 10))
    draws = torch.randint(len(told), (times, len(told)), generator=ctx.rng(key, at=0)).numpy()
    return [solve_across(runs.domain._replace(loss=told * np.exp(left[draw])), runs.k, epsilon, found)
            for draw in draws]


def errors_across(runs: Several, epsilon: float) -> dict[str, float]:
    """The mean percent error of the loss on a domain that the fit has not seen, over the domains between the
    easiest and the hardest; none where there are fewer than four."""
    order = sorted(set(runs.name), key=lambda name: float(runs.k[runs.name.index(name)]))
    wrong = []
    for name in order[1:-1] if len(order) > 3 else ():
        left = np.array([one == name for one in runs.name])
        found = solve_across(runs.domain.part(~left), runs.k[~left], epsilon)
        made = predicted(found, runs.domain.part(left), runs.k[left], epsilon)
        wrong.append(100 * float(np.abs(made / runs.domain.loss[left] - 1).mean()))
    return {"percent error of the loss, a domain left out": float(np.mean(wrong))} if wrong else {}
