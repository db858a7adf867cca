"""A frozen weight with a few trained numbers added: their gradients are the dense ones at their places, and
small ones count."""
from __future__ import annotations

import torch
from torch import Tensor

from trainwright.lm.sparse_delta import Watch, product, scattered


def test_a_product_by_hand() -> None:
    weight, places = torch.tensor([[1., 2], [3, 4]]), torch.tensor([1, 2])
    values, x = (
        torch.tensor([10.0, -3], requires_grad=True),
        torch.tensor([[[1.0, 1]], [[2, 0]]], requires_grad=True),
    )
    numbers, seen = torch.zeros(1, requires_grad=True), list[Tensor]()
    y = product(x, values, weight, places, torch.ones(2), Watch(numbers, torch.tensor([3]), 0.5, seen.append))
    assert torch.equal(y, torch.tensor([[[14., 5]], [[3, 1]]]))
    y.backward(torch.tensor([[[1., 2]], [[3, 4]]]))
    assert torch.equal(values.grad, torch.tensor([1., 10])) and torch.equal(numbers.grad, torch.tensor([1.]))
    assert torch.equal(x.grad, torch.tensor([[[1., 20]], [[3, 52]]]))
    assert torch.equal(seen[0], torch.tensor([[1.0, 1], [2, 2]]))  # of the first row alone


def test_small_numbers_are_not_lost_beside_large_weights() -> None:
    """In bfloat16 both 1.0035 and 1.001 are 1: their sum is not, as long as they meet before they are
    rounded."""
    made = scattered(
        torch.tensor([[1.0035, 5]]),
        torch.tensor([0.001]),
        torch.tensor([0], dtype=torch.int32),
        torch.bfloat16,
    )
    assert made.dtype == torch.bfloat16 and made.tolist() == [[1.0078125, 5]]
