"""Task vectors are added to the base and taken away, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.merge.task_arithmetic import TaskArithmetic
from trainwright.stages.merge import combined

BASE = torch.tensor([1.0, 1.0, 1.0])
ONE, TWO = torch.tensor([2.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, -3.0])


def merged(tensors: list[Tensor], base: Tensor | None, *weights: float) -> Tensor:
    return combined("w", tensors, base, [TaskArithmetic(weights=weights)], Context())


def test_by_hand() -> None:
    assert torch.allclose(merged([ONE, TWO], BASE, 1.0, 0.5), torch.tensor([2.0, 1.0, -1.0]))
    assert torch.allclose(merged([ONE, TWO], BASE), (ONE + TWO) / 2)


def test_adding_is_the_model_and_negation_undoes_it() -> None:
    assert torch.equal(merged([TWO], BASE, 1.0), TWO)
    assert torch.equal(merged([TWO], BASE, 0.0), BASE)
    assert torch.equal(merged([TWO], BASE, -1.0), 2 * BASE - TWO)


def test_small_differences_survive_bf16() -> None:
    """Eight small steps of an eighth each: in bf16 every one of them would be lost."""
    base = torch.tensor([256.0]).bfloat16()
    out = merged([base + 2] * 8, base, *[0.125] * 8)
    assert out.dtype == torch.bfloat16 and out.item() == 258.0
    assert torch.equal(merged([torch.tensor([5])], torch.tensor([3])), torch.tensor([3]))


def test_errors() -> None:
    with pytest.raises(UserError, match="base = "):
        merged([ONE, TWO], None)
    with pytest.raises(UserError, match="1 numbers for 2 models"):
        merged([ONE, TWO], BASE, 1.0)
