"""Masks of weights: kept with a model, added up, written as bits."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from trainwright.core import masks


def test_masks_of_one_parameter_add_up() -> None:
    model = nn.Linear(3, 2)
    masks.keep(model, "weight", torch.tensor([[True, False, True], [True, True, True]]))
    masks.keep(model, "weight", torch.tensor([[True, True, False], [True, True, True]]))
    assert masks.of(model)["weight"].tolist() == [[True, False, False], [True, True, True]]
    assert (model.weight == 0).tolist() == [[False, True, True], [False, False, False]]


def test_what_grew_again_is_counted_and_removed() -> None:
    model = nn.Linear(4, 2)
    masks.keep(model, "weight", torch.eye(4, dtype=torch.bool)[:2])
    nn.init.ones_(model.weight)
    assert masks.enforce(model) == 6 and int((model.weight == 0).sum()) == 6
    assert masks.enforce(model) == 0


@pytest.mark.parametrize("shape", [(5, 7), (8,), (1, 1), (2, 3, 3)])
def test_bits_come_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    model = nn.ParameterDict({"w": nn.Parameter(torch.ones(shape))})
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    masks.keep(model, "w", mask)
    masks.write(model, tmp_path)
    other = nn.ParameterDict({"w": nn.Parameter(torch.ones(shape))})
    masks.read(other, tmp_path)
    assert torch.equal(masks.of(other)["w"], mask) and torch.equal(other["w"], model["w"])


def test_a_model_without_masks_writes_none(tmp_path: Path) -> None:
    masks.write(nn.Linear(2, 2), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_mask_of_another_shape_is_a_mistake_of_the_method() -> None:
    with pytest.raises(TypeError, match="must be bool"):
        masks.keep(nn.Linear(2, 3), "weight", torch.ones(2, 3, dtype=torch.bool))
