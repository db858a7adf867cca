"""How many examples of fine-tuning does an ability take: a power law of its error, with its rivals beside it.

"Revisiting the Superficial Alignment Hypothesis" (arXiv 2410.03717). Of models that were fine-tuned on n
examples, with err the share of wrong answers,

    err(n) = scale n^-exponent

The form (correct or not) of answers is learned from a handful of examples; whether they are right goes on
improving with n. So fit each by itself, on the metric of a task that grades it: ``score`` names the share of
right answers, and err = 1 - score. Fitted is the line of least squares through the logarithms, each n
weighing the same, with the mean of 1,000 bootstrap samples of the runs and their spread. It suggests the
examples (``random_subset.count``) at which the error is ``target``.

A power law of few points looks good whatever is true. So two rivals are fitted on the same runs, and each
law's error on every n in turn, left out, is told beside the others':

    power with a floor   err = floor + scale n^-exponent, floor from a grid below the lowest error
    logarithm            err = a - b log n

Take n by factors of two, on nested subsets, with the steps fixed: with fixed epochs more examples are more
updates, too, and the law mixes both (it says so where the rows have ``steps`` that rise with n). Leave n = 0
out: a base model that does not know the format measures the format. Left out, since what was read does not
say: how the paper weighs and fits; its test of new knowledge.

Errors: a row without the score, or with one that is no share; fewer than four n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Fit, ScalingLaw
from trainwright.core.settings import LARGEST, Between, Exponent
from trainwright.lm.fitting import Row, bootstrap, grouped, held_out, linear

Numbers = NDArray[np.float64]
FLOORS = np.linspace(0, 0.99, 34)
"""Of a power law with a floor, as shares of the lowest error."""
FEWEST = 4
"""Numbers of examples, of which one can be left out and three tell a curve from a line."""


class SuperficialAlignmentScaling(ScalingLaw):
    """Suggests how many examples an error takes."""

    scale: float = 1.0
    """Error at one example, by the line."""
    exponent: Exponent = 0.3
    """How fast the error falls with the examples."""
    target: Annotated[float, Between(0, 1, above=True)] = 0.1
    """The error for which examples are suggested."""
    score: str = "score"
    """In fitting: the number that is the share of right answers, such as ``sums``."""
    fitted_examples: tuple[float, float] = (1.0, 1e6)
    """Fewest and most examples of the runs behind the constants."""
    columns: ClassVar[tuple[str, ...]] = ("examples",)

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"scale must be above 0, not {self.scale}")

    def error(self, examples: float) -> float:
        return self.scale * examples**-self.exponent

    def needed(self) -> float:
        """The examples at which the error is ``target``; infinite where it does not fall."""
        powers = math.log(self.scale / self.target)
        return math.exp(min(powers / self.exponent, 700.0)) if self.exponent > 0 else math.inf

    def needs_a_place(self) -> bool:
        return False

    def suggest(self, known: dict[str, float]) -> dict[str, Any]:
        if (needed := self.needed()) > LARGEST:
            raise UserError(f"superficial_alignment_scaling: with scale = {self.scale:g} and exponent = "
                            f"{self.exponent:g} no number of examples has an error of {self.target:g}.")
        return {"random_subset.count": max(1, round(needed))}

    def doubts(self, known: dict[str, float]) -> str:
        low, high = self.fitted_examples
        inside = low / 1.1 <= self.needed() <= high * 1.1
        return "" if inside else f"extrapolated: its constants come from runs of {low:g} to {high:g} examples"

    def fit(self, rows: Sequence[Row], ctx: Context) -> Fit:
        known = [row | {"error": self._error(row)} for row in rows]
        used = [row for row in known if row["error"] > 0]
        groups = grouped(used, ("examples",)) if used else []
        if len(groups) < FEWEST:
            raise UserError(
                f"superficial_alignment_scaling: it needs runs of {FEWEST} numbers of examples at least "
                f"that still make mistakes, and these have {len(groups)}."
            )
        table = _logs(used)
        found = bootstrap(table, _power, ctx, "superficial_alignment_scaling/bootstrap")
        ends = tuple(float(pick(row["examples"] for row in used)) for pick in (min, max))
        law = replace(self, fitted_examples=ends)
        return Fit(
            law._with(found.mean(0)), [law._with(one) for one in found], _errors(groups), _notes(known, used)
        )

    def made_up(self, ctx: Context) -> list[Row]:
        noise = torch.randn(8, 3, generator=ctx.rng("superficial_alignment_scaling/made_up", at=0)).numpy()
        return [
            {"examples": n, self.score: float(1 - self.error(n) * np.exp(0.03 * noise[i, k]))}
            for i, n in enumerate(16.0 * 2.0 ** np.arange(8))
            for k in range(3)
        ]

    def _error(self, row: Row) -> float:
        right = row.get(self.score)
        if not isinstance(right, int | float) or isinstance(right, bool) or not 0 <= right <= 1:
            raise UserError(
                f"superficial_alignment_scaling: {self.score!r} of a run must be a share of right answers, "
                f"from 0 to 1, not {right!r}: name another number as score."
            )
        return 1.0 - right

    def _with(self, found: Numbers) -> SuperficialAlignmentScaling:
        return replace(self, scale=float(f"{np.exp(found[0]):.5g}"), exponent=float(f"{-found[1]:.5g}"))


def _logs(rows: Sequence[Row]) -> Numbers:
    """Logarithms of examples and error, a row each."""
    return np.log([[row["examples"], row["error"]] for row in rows])


def _power(table: Numbers) -> Numbers | None:
    """The line through logarithms: its height at 0 and its slope. None where it does not fall."""
    line = linear(table[:, :1], table[:, 1])
    return line if line is not None and line[1] < 0 else None


Curve = Callable[[float], float]


def power(rows: Sequence[Row]) -> Curve | None:
    """err = scale n^-exponent."""
    line = linear(_logs(rows)[:, :1], _logs(rows)[:, 1])
    return None if line is None else lambda n: float(np.exp(line[0] + line[1] * np.log(n)))


def floored(rows: Sequence[Row]) -> Curve | None:
    """err = floor + scale n^-exponent, of the floor whose line has the least squares, in errors."""
    table = np.array([[row["examples"], row["error"]] for row in rows])
    best: tuple[float, Curve] | None = None
    for floor in FLOORS * table[:, 1].min():
        line = linear(np.log(table[:, :1]), np.log(table[:, 1] - floor))
        if line is None:
            return None

        def curve(n: float, floor: float = floor, line: Numbers = line) -> float:
            return float(floor + np.exp(line[0] + line[1] * np.log(n)))

        off = sum((curve(n) - error) ** 2 for n, error in table)
        best = (off, curve) if best is None or off < best[0] else best
    return None if best is None else best[1]


def logarithm(rows: Sequence[Row]) -> Curve | None:
    """err = a - b log n."""
    line = linear(_logs(rows)[:, :1], np.array([row["error"] for row in rows]))
    return None if line is None else lambda n: float(line[0] + line[1] * np.log(n))


LAWS = {"power law": power, "power law with a floor": floored, "logarithm": logarithm}


def _errors(groups: Sequence[list[Row]]) -> dict[str, float]:
    """How far each law is from the mean error at numbers of examples that it has not seen."""

    def off(curve: Curve, group: list[Row]) -> float:
        return abs(curve(group[0]["examples"]) - float(np.mean([row["error"] for row in group])))

    out = {}
    for name, law in LAWS.items():

        def fitted(
            parts: list[list[Row]], law: Callable[[Sequence[Row]], Curve | None] = law
        ) -> Curve | None:
            return law([row for part in parts for row in part])

        out[f"error off, {name}, left-out examples, mean"] = float(np.mean(held_out(groups, fitted, off)))
    return out


def _notes(known: Sequence[Row], used: Sequence[Row]) -> list[str]:
    notes = []
    if right := len(known) - len(used):
        notes.append(
            f"{right} runs make no mistake and are left out: the logarithm of their error is infinite"
        )
    steps = [row["steps"] for row in used if "steps" in row]
    if len(steps) == len(used) and max(steps) > min(steps):
        rising = np.corrcoef(np.log(steps), _logs(used)[:, 0])[0, 1] > 0.5
        notes += ["more examples were more steps, too: the law mixes both; fix the steps"] if rising else []
    return notes
