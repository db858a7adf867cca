"""Which run of a grid to go on with, from how it begins: early gradient norm and early loss against the final
score.

"Unveiling the Secret Recipe: A Guide For Supervised Fine-Tuning Small LLMs" (arXiv 2412.13337), which finds
that large batches with low rates end best, and that such runs are known early by a low gradient norm and a
high loss. Of finished runs, a row each, with g the mean gradient norm before clipping and l the mean loss
over the first fifth of the steps (``early_grad_norm``, ``early_loss``: rows of a store have them), and
``score`` the number that decides,

    grad_norm_rank = Spearman's correlation of g with the score        the paper: below 0
    loss_rank      = that of l                                         the paper: above 0

with the bootstrap over runs for their intervals. Suggested are ``lr`` and ``batch_tokens`` of the run that
begins with the lowest gradient norm. As errors are told

    compute saved      share of all tokens that is not spent where the half of the runs with the larger g
                       ends after a fifth
    regret             how much of the best score is lost by that, as a share of the spread of the scores
    within one rate    the mean correlations among runs of one learning rate: a low rate makes the early loss
                       high and the gradients small whether or not they matter, and a large batch averages
                       noise away

Compare runs of equal tokens. Whether the indicators predict anything *here* is what the fit says; before it,
the rates below are an example. Left out: the paper's comparisons of warm-up, schedules and phased data, which
are arms of a comparison.

Errors: fewer than six runs; a row without what is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Fit, ScalingLaw
from trainwright.core.settings import Between, Positive
from trainwright.lm.fitting import Row, bootstrap, grouped

Numbers = NDArray[np.float64]
EARLY = 0.2
"""Share of the steps that is early, as in ``planning/runs.py``."""
FEWEST = 6
Rank = Annotated[float, Between(-1, 1)]


class SmallLlmSftGuide(ScalingLaw):
    """Suggests rate and batch of the run that begins with the smallest gradients."""

    lr: Positive = 1e-4
    """The rate that is suggested: of the run with the lowest early gradient norm."""
    batch_tokens: Positive = 65536.0
    """The tokens of a step of that run."""
    grad_norm_rank: Rank = -0.8
    """Rank correlation of the early gradient norm with the score."""
    loss_rank: Rank = 0.8
    """That of the early loss."""
    optimizer: str = "adamw"
    """Optimizer of the runs; its ``lr`` is filled in."""
    score: str = "score"
    """In fitting: the number that decides, such as ``sums`` or ``loss/questions``."""
    better: Literal["higher", "lower"] = "higher"
    """Which way it is better."""
    columns: ClassVar[tuple[str, ...]] = ("early_grad_norm", "early_loss", "lr", "batch_tokens")

    def needs_a_place(self) -> bool:
        return False

    def suggest(self, known: dict[str, float]) -> dict[str, Any]:
        return {f"{self.optimizer}.lr": self.lr, "batch_tokens": self.batch_tokens}

    def doubts(self, known: dict[str, float]) -> str:
        weak = self.grad_norm_rank > -0.3
        return "in the runs behind it, small gradients did not go with good scores" if weak else ""

    def fit(self, rows: Sequence[Row], ctx: Context) -> Fit:
        if len(rows) < FEWEST:
            raise UserError(
                f"small_llm_sft_guide: {len(rows)} runs have no ranking to speak of: it needs {FEWEST}."
            )
        names = {str(row.get("optimizer", self.optimizer)) for row in rows}
        if len(names) > 1:
            raise UserError(
                f"small_llm_sft_guide: these are runs of several optimizers ({', '.join(sorted(names))}); "
                "fit each by itself."
            )
        table = np.array([[row[name] for name in self.columns] + [self._score(row)] for row in rows])
        found = bootstrap(table, _constants, ctx, "small_llm_sft_guide/bootstrap")
        law = replace(self, optimizer=names.pop())
        whole = _constants(table)
        if whole is None:
            raise UserError(
                "small_llm_sft_guide: the scores of all runs are the same, or their early numbers are."
            )
        return Fit(law._with(whole), [law._with(one) for one in found], self._errors(table, rows), [])

    def made_up(self, ctx: Context) -> list[Row]:
        noise = torch.randn(5, 4, 3, generator=ctx.rng("small_llm_sft_guide/made_up", at=0)).numpy()
        sign = 1 if self.better == "higher" else -1
        rows = []
        for i, j in np.ndindex(5, 4):
            lr, batch = self.lr * 3.0**i, self.batch_tokens / 2.0**j
            bad = i + 0.5 * j
            rows.append(
                {
                    "lr": lr,
                    "batch_tokens": batch,
                    self.score: float(10 - sign * (bad + 1.2 * noise[i, j, 0])),
                    "early_grad_norm": float(np.exp(0.3 * (bad + 0.6 * noise[i, j, 1]))),
                    "early_loss": float(4 - 0.3 * (bad + 0.6 * noise[i, j, 2])),
                }
            )
        return rows

    def _score(self, row: Row) -> float:
        value = row.get(self.score)
        if not isinstance(value, int | float) or isinstance(value, bool) or not np.isfinite(value):
            raise UserError(
                f"small_llm_sft_guide: a run has no number {self.score!r}: name another as score."
            )
        return float(value) if self.better == "higher" else -float(value)

    def _with(self, found: Numbers) -> SmallLlmSftGuide:
        lr, batch, norm, loss = (float(f"{v:.5g}") for v in found)
        return replace(self, lr=lr, batch_tokens=batch, grad_norm_rank=norm, loss_rank=loss)

    def _errors(self, table: Numbers, rows: Sequence[Row]) -> dict[str, float]:
        score, order = table[:, 4], table[:, 0].argsort(kind="stable")
        kept = order[: -(len(order) // 2)]
        out = {
            "compute saved by ending the half with large gradients early": (1 - EARLY)
            * (len(order) // 2)
            / len(order),
            "regret of that, as a share of the spread of scores": float(
                (score.max() - score[kept].max()) / np.ptp(score)
            ),
        }
        groups = [[rows.index(row) for row in group] for group in grouped(rows, ("lr",))]
        for place, name in enumerate(("gradient norm", "loss")):
            ranks = [
                r for g in groups if len(g) > 2 and (r := spearman(table[g, place], score[g])) is not None
            ]
            if ranks:
                out[f"rank correlation of the early {name} within one rate, mean"] = float(np.mean(ranks))
        return out


def spearman(one: Numbers, other: Numbers) -> float | None:
    """Spearman's rank correlation; None where one of both is constant."""
    from scipy.stats import spearmanr

    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(spearmanr(one, other).statistic)


def _constants(table: Numbers) -> Numbers | None:
    """Rate and batch of the run with the smallest early gradients, and both rank correlations."""
    norm, loss = spearman(table[:, 0], table[:, 4]), spearman(table[:, 1], table[:, 4])
    if norm is None or loss is None:
        return None
    first = table[table[:, 0].argmin()]
    return np.array([first[2], first[3], norm, loss])
