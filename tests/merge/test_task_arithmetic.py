"""Task vectors are added to the base and taken away, by hand."""
from __future__ import annotations

import pytest
import torch

from trainwright.core.errors import UserError
from trainwright.merge.task_arithmetic import TaskArithmetic

BASE = torch.tensor([1.0, 1.0, 1.0])
ONE, TWO = torch.tensor([2.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, -3.0])


def test_by_hand() -> None:
    assert torch.allclose(TaskArithmetic(weights=(1.0, 0.5)).combine([ONE, TWO], BASE), torch.tensor([2.0, 1.0, -1.0]))
    assert torch.allclose(TaskArithmetic().combine([ONE, TWO], BASE), (ONE + TWO) / 2)


def test_adding_is_the_model_and_negation_undoes_it() -> None:
    assert torch.equal(TaskArithmetic(weights=(1.0,)).combine([TWO], BASE), TWO)
    assert torch.equal(TaskArithmetic(weights=(0.0,)).combine([TWO], BASE), BASE)
    assert torch.equal(TaskArithmetic(weights=(-1.0,)).combine([TWO], BASE), 2 * BASE - TWO)


def test_small_differences_survive_bf16() -> None:
    """Eight small steps of an eighth each: in bf16 every one of them would be lost."""
    base = torch.tensor([256.0]).bfloat16()
    out = TaskArithmetic(weights=(0.125,) * 8).combine([(base + 2)] * 8, base)
    assert out.dtype == torch.bfloat16 and out.item() == 258.0
    assert torch.equal(TaskArithmetic().combine([torch.tensor([5])], torch.tensor([3])), torch.tensor([3]))


def test_errors() -> None:
    with pytest.raises(UserError, match="base = "):
        TaskArithmetic().combine([ONE, TWO], None)
    with pytest.raises(UserError, match="1 numbers for 2 models"):
        TaskArithmetic(weights=(1.0,)).combine([ONE, TWO], BASE)
