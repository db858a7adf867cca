"""Which weights are kept, by hand."""
from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from trainwright.core import masks
from trainwright.core.errors import UserError
from trainwright.lm import sparsity

SCORES = torch.tensor([[4.0, 1.0, 3.0, 2.0], [9.0, 8.0, 7.0, 6.0]])


def test_the_lowest_go_within_the_matrix_or_within_a_row() -> None:
    assert sparsity.keep(SCORES, 0.5, "", rows=False).tolist() == [[False] * 4, [True] * 4]
    assert sparsity.keep(SCORES, 0.5, "", rows=True).tolist() == [
        [True, False, True, False],
        [True, True, False, False],
    ]


def test_a_pattern_keeps_so_many_of_each_group() -> None:
    kept = sparsity.keep(SCORES, 0.0, "1:2", rows=False)
    assert kept.tolist() == [[True, False, True, False], [True, False, True, False]]
    with pytest.raises(UserError, match="takes groups of 3 inputs, and a layer has 4"):
        sparsity.keep(SCORES, 0.0, "1:3", rows=False)


def test_equal_scores_leave_the_share_that_was_asked_for() -> None:
    assert int(sparsity.keep(torch.ones(10, 10), 0.3, "", rows=False).sum()) == 70


@pytest.mark.parametrize("pattern", ["2", "4:2", "2:2", "0:4", "a:b", "2:4:8"])
def test_patterns_that_are_none(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        sparsity.check(0.5, pattern)


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0])
def test_shares_that_are_none(share: float) -> None:
    with pytest.raises(ValueError, match="sparsity is the share"):
        sparsity.check(share, "")


def test_transposed_layers_are_pruned_by_output_too() -> None:
    layer = Conv1D(2, 4)
    model = nn.ModuleDict({"a": layer})
    sparsity.prune(model, "a", layer, torch.tensor([[True, False, True, False], [True, True, False, False]]))
    assert (layer.weight == 0).T.tolist() == [[False, True, False, True], [False, False, True, True]]
    assert masks.of(model)["a.weight"].shape == (4, 2)
