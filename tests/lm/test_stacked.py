"""A matrix in several parameters is joined whole; the gradient of its orthogonality comes back in parts."""

from __future__ import annotations

import pytest
import torch

from trainwright.lm.stacked import joined, orthogonal, orthonormal


def test_gradient_of_the_orthogonality_is_autograds() -> None:
    matrix = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (matrix @ matrix.T - torch.eye(3)).norm().backward()
    assert torch.allclose(orthonormal(matrix.detach()), matrix.grad, atol=1e-6)
    assert orthonormal(torch.eye(3, 7)).abs().max() == 0


@pytest.mark.parametrize("dim", [0, 1])
def test_parts_of_the_gradient_are_those_of_the_used_rows(dim: int) -> None:
    """Three parameters of 1, 2 and 2 rows (or columns), of which four are used."""
    whole = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    rows = list(whole.split([1, 2, 2]))
    blocks = {str(i): part if dim == 0 else part.T for i, part in enumerate(rows)}
    assert torch.equal(joined([*blocks.values()], dim), whole if dim == 0 else whole.T)
    found = orthogonal(blocks, 4, dim)
    assert list(found) == list(blocks) and all(found[n].shape == blocks[n].shape for n in blocks)
    together = torch.cat([part if dim == 0 else part.T for part in found.values()])
    assert torch.allclose(together[:4], orthonormal(whole[:4])) and not together[4].any()
