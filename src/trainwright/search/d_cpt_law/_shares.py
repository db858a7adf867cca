"""The loss on one part of a mixture as a function of model size, tokens and the part's share, and its fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.lm.fitting import SAME, Row

Floats = NDArray[np.float64]
Function = Callable[[Floats], Floats]
Terms = Callable[[Floats], tuple[Floats, Floats]]
"""From the constants to the losses of all runs, and their derivatives by the logarithm of each constant."""
HUBER = 1e-3
"""Residual of the logarithm above which a run counts less."""
STARTS = 8
LOW, HIGH = -12.0, 6.0
"""Range of the logarithms of the constants, at the center of the runs."""


class Constants(NamedTuple):
    """L(N, D, r) = e + a / N^alpha + b r^eta / D^beta + c / (r + epsilon)^gamma."""

    e: float
    a: float
    alpha: float
    b: float
    beta: float
    eta: float
    c: float
    gamma: float

    def loss(self, n: Any, d: Any, r: Any, epsilon: float) -> Any:
        return (
            self.e
            + self.a / n**self.alpha
            + self.b * r**self.eta / d**self.beta
            + self.c / (r + epsilon) ** self.gamma
        )


def names(part: str) -> list[str]:
    """The settings that hold a part's constants."""
    return [f"{part}_{name}" for name in Constants._fields]


def settings_of(found: dict[str, Constants]) -> dict[str, float]:
    """The constants of several parts as settings."""
    return {
        n: float(f"{v:.6g}")
        for part, values in found.items()
        for n, v in zip(names(part), values, strict=True)
    }


class Runs(NamedTuple):
    """Runs as arrays of equal length."""

    n: Floats
    d: Floats
    r: Floats
    loss: Floats

    def part(self, which: NDArray[Any]) -> Runs:
        return Runs(*(values[which] for values in self))


def solve(runs: Runs, epsilon: float, start: Constants | None = None) -> Constants:
    """The constants with the least Huber loss of logarithms, from ``start`` or else from several points."""
    middle = center(runs)
    begins = [moved(start, middle, 1)] if start is not None else starts(float(runs.loss.min()))
    best = least(terms_of(runs, epsilon, middle), runs.loss, begins)
    return Constants(*moved(Constants(*best.tolist()), middle, -1).tolist())


def center(runs: Runs) -> tuple[float, float]:
    """Parameters and tokens in the middle of the runs, on a scale of logarithms."""
    return float(np.exp(np.log(runs.n).mean())), float(np.exp(np.log(runs.d).mean()))


def least(terms: Terms, losses: Floats, begins: Sequence[Floats]) -> Floats:
    """The constants with the least Huber loss of logarithms, the best from several starting points."""
    from scipy.optimize import least_squares

    wanted = np.log(losses)

    def residual(logs: Floats) -> Floats:
        return np.log(terms(np.exp(logs))[0]) - wanted

    def jacobian(logs: Floats) -> Floats:
        made, columns = terms(np.exp(logs))
        return columns / made[:, None]

    found = [
        least_squares(
            residual,
            np.clip(np.log(x), LOW + 1e-6, HIGH - 1e-6),
            jacobian,
            bounds=(LOW, HIGH),
            loss="huber",
            f_scale=HUBER,
            x_scale=1.0,
            max_nfev=200,
        )
        for x in begins
    ]
    return np.exp(min(found, key=lambda one: float(one.cost)).x)  # type: ignore[no-any-return]


def terms_of(runs: Runs, epsilon: float, middle: tuple[float, float]) -> Terms:
    """The law on these runs, with ``a`` and ``b`` at their center."""
    x_n, x_d = np.log(runs.n / middle[0]), np.log(runs.d / middle[1])
    log_r, log_s = np.log(np.maximum(runs.r, 1e-12)), np.log(runs.r + epsilon)

    def terms(x: Floats) -> tuple[Floats, Floats]:
        size = x[1] * np.exp(-x[2] * x_n)
        data = x[3] * np.exp(x[5] * log_r - x[4] * x_d)
        share = x[6] * np.exp(-x[7] * log_s)
        columns = [
            np.full(len(x_n), x[0]),
            *(size, -x[2] * x_n * size),
            *(data, -x[4] * x_d * data, x[5] * log_r * data),
            *(share, -x[7] * log_s * share),
        ]
        return x[0] + size + data + share, np.stack(columns, 1)

    return terms


def moved(constants: Constants, middle: tuple[float, float], way: int) -> Floats:
    """``a`` and ``b`` at one parameter and one token (way -1), or at the center of the runs (way 1)."""
    c = constants
    return np.array(c._replace(a=c.a * middle[0] ** (-way * c.alpha), b=c.b * middle[1] ** (-way * c.beta)))


def starts(lowest: float) -> list[Floats]:
    """Starting points at the center of the runs: the lowest loss divided among the four terms in several
    ways."""
    made = []
    for i in range(STARTS):
        bit = [(i >> k) & 1 for k in range(3)]
        falls = (0.15, 0.5)[bit[1]]
        made.append(
            np.array(
                [
                    lowest * (0.35, 0.75)[bit[0]],
                    0.2 * lowest,
                    falls,
                    0.1 * lowest,
                    falls,
                    0.4,
                    0.15 * lowest,
                    (0.2, 0.8)[bit[2]],
                ]
            )
        )
    return made


def redrawn(
    runs: Runs, found: Constants, epsilon: float, times: int, ctx: Context, key: str
) -> list[Constants]:
    """The constants on ``times`` tables with resampled residuals, whose spread is their uncertainty."""
    told = found.loss(runs.n, runs.d, runs.r, epsilon)
    left = np.log(runs.loss / told) * np.sqrt(len(told) / max(1, len(told) - len(found)))
    draws: Sequence[Any] = torch.randint(len(told), (times, len(told)), generator=ctx.rng(key, at=0)).numpy()
    return [solve(runs._replace(loss=told * np.exp(left[draw])), epsilon, found) for draw in draws]


def parts_of(rows: Sequence[Row], domain: str, general: str, law: str) -> tuple[Runs, Runs]:
    """The runs of the two parts of the mixtures, each with its own share.

    Raises:
        UserError: a row without one of the losses or without a mixture of the two; too few sizes, budgets or
            shares.
    """
    found = [numbers_of(row, number, domain, general, law) for number, row in enumerate(rows, 1)]
    return parted(found, law)


def numbers_of(row: Row, number: int, domain: str, general: str, law: str) -> list[float]:
    """Parameters, tokens, the domain's share, and the losses on both parts of a run."""
    weights = [float(row.get(f"mixture.weights.{name}", 0.0)) for name in (domain, general)]
    whole = sum(float(v) for k, v in row.items() if k.startswith("mixture.weights."))
    if sum(weights) <= 0 or whole > sum(weights):
        raise UserError(
            f"{law}: row {number} is of no mixture of {domain} and {general} alone: it needs "
            f"mixture.weights.{domain} and mixture.weights.{general}, and no other weight."
        )
    losses = [row.get(f"loss/{name}") for name in (domain, general)]
    for name, value in zip((domain, general), losses, strict=True):
        if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise UserError(f"{law}: row {number}: loss/{name} must be a positive number, not {value!r}.")
    return [row["parameters"], row["tokens"], weights[0] / sum(weights), *losses]  # type: ignore[list-item]


def parted(found: Sequence[Sequence[float]], law: str) -> tuple[Runs, Runs]:
    """The runs of the two parts, of numbers as ``numbers_of`` gives them.

    Raises:
        UserError: too few sizes, budgets or shares.
    """
    n, d, r, *loss = np.array(found, dtype=np.float64).T
    for what, values in (("parameters", n), ("tokens", d), ("shares", r)):
        if len(groups(values)) < 3:
            raise UserError(
                f"{law}: these {len(found)} runs do not tell its constants apart: it needs three numbers of "
                f"parameters at least, three of tokens, three shares, and they have {len(groups(values))} of "
                f"{what}."
            )
    return Runs(n, d, r, loss[0]), Runs(n, d, 1 - r, loss[1])


def groups(values: Floats) -> list[float]:
    """The distinct numbers, counting nearly equal ones as one."""
    out: list[float] = []
    for value in np.unique(values).tolist():
        if not out or value > out[-1] * SAME + 1e-3 * (value <= 1):
            out.append(value)
    return out


def errors(runs: Runs, epsilon: float) -> dict[str, float]:
    """Mean percent error of the loss on the largest model, the longest runs and a middle share, each left
    out."""
    out = {}
    for what, values in (("the most parameters", runs.n), ("the most tokens", runs.d), ("a share", runs.r)):
        most = what != "a share"
        told = groups(values)
        at = told[-1] if most else told[len(told) // 2]
        left = (values >= at) if most else np.isclose(values, at, rtol=SAME - 1, atol=1e-3)
        if len(told) > 3:
            made = solve(runs.part(~left), epsilon).loss(runs.n[left], runs.d[left], runs.r[left], epsilon)
            out[f"percent error of the loss, {what} left out"] = 100 * float(
                np.abs(made / runs.loss[left] - 1).mean()
            )
    return out


def extrapolated(known: dict[str, float], fitted: tuple[float, ...]) -> list[str]:
    """A doubt if a place is outside the runs, whose ranges of parameters and tokens are ``fitted``."""
    at = zip((known["parameters"], known["tokens"]), fitted[::2], fitted[1::2], strict=False)
    inside = all(low / 1.1 <= value <= high * 1.1 for value, low, high in at)
    ranges = "runs of {:.3g} to {:.3g} parameters and {:.3g} to {:.3g} tokens"
    return [] if inside else [f"extrapolated: its constants come from {ranges.format(*fitted)}"]


def made_up(
    losses: Callable[[float, float, float], tuple[Any, Any]], domain: str, general: str, ctx: Context
) -> list[Row]:
    """Runs of four sizes, four budgets and nine shares with a noise of 0.1 % in the loss."""
    noise = torch.randn(4, 4, 9, 2, generator=ctx.rng("d_cpt_law/made_up", at=0)).numpy()
    rows: list[Row] = []
    for i, j, k in np.ndindex(4, 4, 9):
        n, d, r = 1e6 * 4.0**i, 2e7 * 4.0**j, (0, 0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 1)[k]
        seen = (np.array(losses(n, d, r)) * np.exp(1e-3 * noise[i, j, k])).tolist()
        rows.append(
            {
                "parameters": n,
                "tokens": d,
                f"mixture.weights.{domain}": r,
                f"loss/{domain}": seen[0],
                f"mixture.weights.{general}": 1 - r,
                f"loss/{general}": seen[1],
            }
        )
    return rows
