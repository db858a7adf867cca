"""Tensors come back from their file as they were, and the file of another model is refused."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainwright.core.errors import UserError
from trainwright.lm import deltas


def test_views_and_shared_memory_come_back_in_place(tmp_path: Path) -> None:
    matrix = torch.arange(6.0).view(2, 3)
    deltas.write({"a": matrix.T, "b": matrix[0]}, tmp_path / "new" / "some.safetensors")
    found = {"a": torch.zeros(3, 2), "b": torch.zeros(3, requires_grad=True)}
    held = dict(found)
    deltas.read(found, tmp_path / "new" / "some.safetensors")
    assert torch.equal(held["a"], matrix.T) and torch.equal(held["b"].detach(), matrix[0])


@pytest.mark.parametrize(
    "asked, words",
    [
        ({"b": torch.zeros(2)}, "only one of the two has a"),
        ({"a": torch.zeros(3)}, r"a has the shape \[2\] there and \[3\] here"),
    ],
)
def test_the_delta_of_another_model_is_refused(
    asked: dict[str, torch.Tensor], words: str, tmp_path: Path
) -> None:
    deltas.write({"a": torch.ones(2)}, tmp_path / "some.safetensors")
    with pytest.raises(UserError, match=words):
        deltas.read(asked, tmp_path / "some.safetensors")
    assert not any(t.any() for t in asked.values()), "nothing is read of it"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no some\.safetensors"):
        deltas.read({}, tmp_path / "some.safetensors")
