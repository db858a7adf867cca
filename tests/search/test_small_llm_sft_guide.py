"""Early numbers against the final score: ranks by hand, what ending early costs, and the confounder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Fit
from trainwright.planning import runs
from trainwright.search.small_llm_sft_guide import SmallLlmSftGuide, spearman

GRID = [(lr, batch) for lr in (1e-4, 3e-4, 1e-3) for batch in (1024.0, 2048.0, 4096.0)]


def grid(score: Any = lambda lr, batch, norm: -norm) -> list[dict[str, Any]]:
    """Runs whose early gradients grow with the rate and shrink with the batch."""
    rows = []
    for lr, batch in GRID:
        norm = 1e4 * lr / (batch / 1024)
        rows.append(
            {
                "lr": lr,
                "batch_tokens": batch,
                "early_grad_norm": norm,
                "early_loss": 5 - norm / 10,
                "sums": score(lr, batch, norm),
            }
        )
    return rows


def fitted(rows: list[dict[str, Any]], **settings: Any) -> Fit:
    return runs.fitted(SmallLlmSftGuide(**{"score": "sums"} | settings), rows, Context(), "rows")


def test_small_gradients_that_go_with_good_scores_choose_the_run() -> None:
    law = fitted(grid()).law
    assert (law.grad_norm_rank, law.loss_rank) == (-1, 1)
    assert law.suggest({}) == {"adamw.lr": 1e-4, "batch_tokens": 4096.0} and law.doubts({}) == ""
    assert fitted(grid(lambda lr, batch, norm: norm), better="lower").law.grad_norm_rank == -1
    assert "did not go with" in fitted(grid(lambda lr, batch, norm: norm)).law.doubts({})


def test_ranks_are_spearmans() -> None:
    """1 - 6 sum d^2 / (n (n^2 - 1)) with d = 1, -1, 0, 0."""
    one, other = np.array([1.0, 2.0, 3.0, 4.0]), np.array([20.0, 10.0, 30.0, 40.0])
    assert spearman(one, other) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert spearman(one, np.ones(4)) is None


def test_what_ending_half_of_the_runs_early_costs() -> None:
    """Of nine runs four end after a fifth; the best is kept, or it is the one with the largest gradients."""
    told = fitted(grid()).errors
    assert told["compute saved by ending the half with large gradients early"] == pytest.approx(0.8 * 4 / 9)
    assert told["regret of that, as a share of the spread of scores"] == 0
    wrong = fitted(grid(lambda lr, batch, norm: float(norm == 10))).errors
    assert wrong["regret of that, as a share of the spread of scores"] == 1


def test_a_rate_that_causes_both_is_seen() -> None:
    """The score depends on the rate alone: over all runs the early loss predicts it, within one not."""
    rows = grid(lambda lr, batch, norm: -lr)
    found = fitted(rows)
    assert found.law.loss_rank > 0.5
    assert not any("within one rate" in name for name in found.errors)
    noise = iter(range(100))
    told = fitted([row | {"sums": row["sums"] - 1e-6 * (next(noise) % 2)} for row in rows]).errors
    assert abs(told["rank correlation of the early loss within one rate, mean"]) < 0.3


def test_what_it_refuses() -> None:
    with pytest.raises(UserError, match="it needs 6"):
        fitted(grid()[:5])
    with pytest.raises(UserError, match="no number 'score'"):
        fitted(grid(), score="score")
    with pytest.raises(UserError, match="several optimizers"):
        fitted([row | {"optimizer": name} for row, name in zip(grid(), "aabbaabba", strict=True)])
    with pytest.raises(UserError):
        fitted(grid(lambda lr, batch, norm: 1.0))
