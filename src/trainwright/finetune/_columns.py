"""A product with a weight of which some input columns are trained: the gradient of those alone, and little kept for it."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class Columns(torch.autograd.Function):
    """``F.linear(x, V, bias)``, where V is ``weight`` [out, in] with ``scale * columns`` [out, rank] as its columns ``index``.

    Only ``columns`` and ``x`` [..., in] get a gradient; of ``x`` the entries at ``index`` are kept. V is ``weight`` itself, with
    the columns in it while a product takes; where ``x`` has another dtype, a copy that each pass makes and none keeps.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, columns: Tensor, weight: Tensor, index: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        part = x.reshape(-1, x.shape[-1]).T.index_select(0, index)     # [rank, tokens], a copy: a view would keep all of x
        ctx.save_for_backward(part, columns, weight, index)
        ctx.scale = scale
        bias = None if bias is None else bias.to(x.dtype)
        return product(lambda v: F.linear(x, v, bias), weight, columns, index, scale, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        part, columns, weight, index = ctx.saved_tensors
        grad_x = grad_columns = None
        with torch.autocast(grad.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                told = weight, columns, index, ctx.scale
                compiled = torch.compiler.is_compiling()
                grad_x = _back(grad, *told) if compiled else product(lambda v: grad @ v, *told, grad.dtype)
            if ctx.needs_input_grad[1]:
                grad_columns = (part @ grad.reshape(-1, grad.shape[-1])).T.to(columns.dtype).mul_(ctx.scale)
        return grad_x, grad_columns, None, None, None, None


def product(of: Callable[[Tensor], Tensor], weight: Tensor, columns: Tensor, index: Tensor, scale: float,
            kind: torch.dtype) -> Tensor:
    """``of(V)`` in the dtype ``kind``. Autograd is not told of what is put in and taken out again (``data``)."""
    if weight.dtype != kind or torch.compiler.is_compiling():
        return of(copied(weight, columns, index, scale, kind))
    old = weight.index_select(1, index)
    try:
        weight.data.index_copy_(1, index, columns.mul(scale).to(kind))
        return of(weight)
    finally:
        weight.data.index_copy_(1, index, old)


def copied(weight: Tensor, columns: Tensor, index: Tensor, scale: float, kind: torch.dtype) -> Tensor:
    """A copy of ``weight`` [out, in] in the dtype ``kind``, with ``scale * columns`` as its columns ``index``."""
    return weight.to(kind, copy=True).index_copy_(1, index, columns.mul(scale).to(kind))


@torch.library.custom_op("trainwright::columns_back", mutates_args=())
def _back(grad: Tensor, weight: Tensor, columns: Tensor, index: Tensor, scale: float) -> Tensor:
    """Opaque to the compiler, which would find V in both passes, make it once, and keep it in between: all the weights again."""
    return grad @ copied(weight, columns, index, scale, grad.dtype)


@_back.register_fake
def _(grad: Tensor, weight: Tensor, columns: Tensor, index: Tensor, scale: float) -> Tensor:
    return grad.new_empty(*grad.shape[:-1], weight.shape[1])
