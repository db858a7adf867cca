"""Matrices of which each of several parameters holds some rows or columns, as of an adapter that grows."""

from __future__ import annotations

import torch
from torch import Tensor

from trainwright.core.method import Tensors


def joined(blocks: list[Tensor], dim: int) -> Tensor:
    """The blocks as one tensor: a copy, where there are several."""
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim)


def orthogonal(blocks: Tensors, used: int, dim: int) -> Tensors:
    """The gradient of ||M M' - I||_F by block, where the blocks, joined along ``dim``, hold the rows of M
    (``dim`` 0) or its columns (1), of which the first are used."""
    whole = joined([*blocks.values()], dim)
    gradient, held = torch.zeros_like(whole), whole.narrow(dim, 0, used)
    gradient.narrow(dim, 0, used).copy_(orthonormal(held) if dim == 0 else orthonormal(held.T).T)
    sizes = [block.shape[dim] for block in blocks.values()]
    return dict(zip(blocks, gradient.split(sizes, dim), strict=True))


def orthonormal(matrix: Tensor) -> Tensor:
    """The gradient of ||M M' - I||_F, whose rows are to be orthonormal."""
    off = matrix @ matrix.T - torch.eye(len(matrix), device=matrix.device)
    return 2 * off @ matrix / off.norm().clamp(min=1e-12)
