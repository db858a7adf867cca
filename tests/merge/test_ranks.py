"""Ranks found by counting are those that sorting finds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.merge.checkpoints import context, flat, tuned
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.merge._ranks import TaskVectors, at_ranks, check_first, cut_off, slices

DRAWN = torch.randn(5000, generator=torch.Generator().manual_seed(0)).abs()
SIGNED = torch.randn(5000, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("numbers", [DRAWN, SIGNED, DRAWN * 1e-30, (DRAWN * 4).round() / 4, torch.zeros(5)])
def test_every_rank_is_that_of_sorting(numbers: torch.Tensor) -> None:
    ordered, n = numbers.sort().values, len(numbers)
    ranks = sorted({0, 1, n // 3, n // 2, n - 2, n - 1})
    assert at_ranks(lambda: iter(numbers.split(700)), ranks) == [ordered[r].item() for r in ranks]


@pytest.mark.parametrize("keep", [0.2, 0.5, 1.0])
def test_a_share_is_kept(keep: float) -> None:
    cut = cut_off(slices(-DRAWN), len(DRAWN), keep)
    assert int((cut <= DRAWN).sum()) == int(keep * len(DRAWN))
    assert cut_off(slices(DRAWN[:4]), 4, 0.1) == float("inf")


def test_task_vectors_are_differences_from_the_base(tmp_path: Path) -> None:
    models, base = tuned(2)
    vectors = TaskVectors(context(tmp_path, models, base), "mine")
    assert vectors.numel == len(flat(base))
    for i, model in enumerate(models):
        wanted = flat(model) - flat(base)
        assert torch.equal(torch.cat([pieces[i] for pieces in vectors.magnitudes()]), wanted.abs())
        assert torch.equal(torch.cat([pieces[i] for pieces in vectors.pieces()]), wanted)
        kept = wanted.abs().sort(descending=True).values[int(0.3 * len(wanted)) - 1].item()
        assert vectors.cuts(0.3, by_tensor=False)["*"][i] == kept
    assert vectors.cuts(0.5, by_tensor=True)["norm"][1] == (
        (models[1]["norm"] - base["norm"]).abs().sort(descending=True).values[5].item()
    )


def test_the_angle_between_two_task_vectors(tmp_path: Path) -> None:
    models, base = tuned(2)
    a, b = (flat(m) - flat(base) for m in models)
    vectors = TaskVectors(context(tmp_path, models, base), "mine")
    assert vectors.cosine() == pytest.approx(torch.cosine_similarity(a, b, dim=0).item(), abs=1e-6)


def test_mistakes() -> None:
    with pytest.raises(UserError, match="mine needs the model that the others were trained from"):
        TaskVectors(Context(), "mine")
    with pytest.raises(UserError, match="1 tensors for 3 models: name it first"):
        check_first(3, 1, "mine")
