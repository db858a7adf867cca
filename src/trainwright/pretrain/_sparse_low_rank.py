"""The product with a matrix that is low-rank plus sparse, made when it is needed and never kept."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def together(B: Tensor, A: Tensor, values: Tensor, places: Tensor, scale: float) -> Tensor:
    """W = scale B A + S, [out, in]."""
    w = torch.mm(B, scale * A)
    w.view(-1).index_add_(0, places, values)
    return w


class Product(torch.autograd.Function):
    """y = W x + bias for rows x, where W is made when it is needed and never kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, B: Tensor, A: Tensor, values: Tensor, places: Tensor, bias: Tensor | None,
                scale: float) -> Tensor:
        ctx.save_for_backward(x, B, A, values, places)
        ctx.scale = scale
        return F.linear(x, together(B, A, values, places, scale), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, B, A, values, places = ctx.saved_tensors
        dx = grad @ together(B, A, values, places, ctx.scale) if ctx.needs_input_grad[0] else None
        dw = grad.T @ x
        dbias = grad.sum(0) if ctx.needs_input_grad[5] else None
        return dx, dw @ (ctx.scale * A).T, ctx.scale * (B.T @ dw), dw.view(-1).index_select(0, places), None, dbias, None
