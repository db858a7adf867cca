"""A linear layer whose frozen weight has a few trained numbers added, for methods that train sparse deltas.

``product`` computes the layer and gives those numbers alone a gradient; no dense gradient is kept.
``scattered`` puts them into the weight, for export. Places are flat: entry (i, j) of a weight [out, in] is at
i * in + j, int32 or int64.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class Watch(NamedTuple):
    """Other places whose gradients are wanted, though nothing is added there, and a look at the dense one."""

    numbers: Tensor
    """A parameter [n] that gets the gradients at ``places``, times ``scale``; its values are not used."""
    places: Tensor
    """Flat places [n]."""
    scale: float
    """Factor of those gradients."""
    see: Callable[[Tensor], None] | None = None
    """Called with the dense gradient [out, in] of the batch's first row, which it must not keep."""


class Scattered(torch.autograd.Function):
    """``F.linear(x, V, bias)``, where V is ``weight`` [out, in] with ``values`` added at the flat ``places``.

    Only ``values`` and ``x`` [..., in] get a gradient. V is made in forward and again in backward, in the
    dtype of ``x``, and not kept in between; the dense gradient of V exists only until the entries at the
    places are read off it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, weight: Tensor, places: Tensor, bias: Tensor | None,
                numbers: Tensor | None, watch: Watch | None) -> Tensor:
        ctx.save_for_backward(x, values, weight, places)
        ctx.watch = watch
        return F.linear(
            x, scattered(weight, values, places, x.dtype), None if bias is None else bias.to(x.dtype)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, values, weight, places = ctx.saved_tensors
        watch, grad_x, grad_numbers = ctx.watch, None, None
        with torch.autocast(grad.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                back = _opaque_back if torch.compiler.is_compiling() else _back
                grad_x = back(grad, weight, values, places)
            dense = _dense(grad, x)
            grad_values = dense.index_select(0, places).to(values.dtype)
            if watch is not None:
                grad_numbers = dense.index_select(0, watch.places).to(values.dtype) * watch.scale
                if watch.see is not None:
                    watch.see((_dense(grad[0], x[0]) if grad.ndim > 2 else dense).view(weight.shape))
        return grad_x, grad_values, None, None, None, grad_numbers, None


def product(
    x: Tensor, values: Tensor, weight: Tensor, places: Tensor, bias: Tensor | None, watch: Watch | None = None
) -> Tensor:
    """``F.linear(x, V, bias)`` [..., out], where V is ``weight`` with ``values`` added at ``places``.

    Args:
        x: [..., in]; V is made in its dtype.
        values: [n], trained.
        weight: [out, in], frozen.
        places: [n] flat places, none twice.
        bias: [out], frozen, or None.
        watch: places whose gradients are wanted as well.
    """
    numbers = None if watch is None else watch.numbers
    given = (x, values, weight, places, bias, numbers, watch)
    return Scattered.apply(*given)  # type: ignore[no-any-return, no-untyped-call]


def scattered(weight: Tensor, values: Tensor, places: Tensor, kind: torch.dtype) -> Tensor:
    """A copy of ``weight`` [out, in] in the dtype ``kind``, with ``values`` [n] added at the flat places,
    none twice.

    They are added before the dtype changes, so that a small number is not lost beside a large weight.
    """
    whole, at = torch.empty(weight.shape, dtype=kind, device=weight.device).copy_(weight), places.long()
    before = weight[at // weight.shape[1], at % weight.shape[1]]
    whole.view(-1).index_copy_(0, at, (before + values).to(kind))
    return whole


def _dense(grad: Tensor, x: Tensor) -> Tensor:
    """dL/dV, flat."""
    return (grad.reshape(-1, grad.shape[-1]).T @ x.reshape(-1, x.shape[-1])).reshape(-1)


def _back(grad: Tensor, weight: Tensor, values: Tensor, places: Tensor) -> Tensor:
    return grad @ scattered(weight, values, places, grad.dtype)


_opaque_back = torch.library.custom_op("trainwright::scattered_back", _back, mutates_args=())
"""The compiler would find V in both passes, make it once, and keep it in between: all the weights again."""


@_opaque_back.register_fake
def _(grad: Tensor, weight: Tensor, values: Tensor, places: Tensor) -> Tensor:
    return grad.new_empty(*grad.shape[:-1], weight.shape[1])
