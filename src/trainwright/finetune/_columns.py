"""A product with a weight of which some input columns are trained: the gradient of those alone, and little kept for it."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class Columns(torch.autograd.Function):
    """``F.linear(x, V, bias)``, where V is ``weight`` [out, in] with ``scale * columns`` [out, rank] as its columns ``index``.

    Only ``columns`` and ``x`` [..., in] get a gradient. V is made in forward and again in backward, in the dtype of ``x``, and
    not kept in between; of ``x`` the entries at ``index`` are kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, columns: Tensor, weight: Tensor, index: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        part = x.reshape(-1, x.shape[-1]).T.index_select(0, index)     # [rank, tokens], a copy: a view would keep all of x
        ctx.save_for_backward(part, columns, weight, index)
        ctx.scale = scale
        return F.linear(x, put_in(weight, columns, index, scale, x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        part, columns, weight, index = ctx.saved_tensors
        grad_x = grad_columns = None
        with torch.autocast(grad.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                back = _opaque_back if torch.compiler.is_compiling() else _back
                grad_x = back(grad, weight, columns, index, ctx.scale)
            if ctx.needs_input_grad[1]:
                grad_columns = (part @ grad.reshape(-1, grad.shape[-1])).T.to(columns.dtype).mul_(ctx.scale)
        return grad_x, grad_columns, None, None, None, None


def put_in(weight: Tensor, columns: Tensor, index: Tensor, scale: float, kind: torch.dtype) -> Tensor:
    """A copy of ``weight`` [out, in] in the dtype ``kind``, with ``scale * columns`` as its columns ``index``."""
    return weight.to(kind, copy=True).index_copy_(1, index, columns.mul(scale).to(kind))


def _back(grad: Tensor, weight: Tensor, columns: Tensor, index: Tensor, scale: float) -> Tensor:
    return grad @ put_in(weight, columns, index, scale, grad.dtype)


_opaque_back = torch.library.custom_op("trainwright::columns_back", _back, mutates_args=())
"""The compiler would find V in both passes, make it once, and keep it in between: all the weights again."""


@_opaque_back.register_fake
def _(grad: Tensor, weight: Tensor, columns: Tensor, index: Tensor, scale: float) -> Tensor:
    return grad.new_empty(*grad.shape[:-1], weight.shape[1])
