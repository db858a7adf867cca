"""PaCA: train a few random input columns of each linear layer in place, without a second path beside it.

"PaCA: Partial Connection Adaptation for Efficient Fine-Tuning" (arXiv 2503.01905). Its QPaCA, on a base in 4
bits, is ``frozen = "nf4"`` of the stage: the trained columns come from the weights as they were. For a layer
W [out, in] draw ``rank`` columns S once, uniformly; everything else is frozen. With P [out, rank] trained,
s = alpha / rank, and P = W[:, S] / s at the start,

    V = W with s P as its columns S,    y = V x + b,    dL/dx = V' dL/dy,    dL/dP = s (dL/dy) x[S]'

so that the gradient is the dense one on those columns, and the forward pass is one product. Backward keeps
x[S] (rank numbers a token) and the weights themselves: for each product s P is written into W and the old
columns are put back. Only where W is in 4 bits, or autocast gives the activations another dtype, is V a
temporary copy, as autocast makes of any frozen weight. ``fold`` writes s P into W for good; the other columns
stay as they were, to the bit. P is float32. Weight decay pulls the columns to zero, not back to W. Under Adam
a step moves them by about s times the learning rate; with alpha = rank the columns are trained plainly.

The released code computes some passes with columns of an earlier step, and accepts inputs of three dimensions
only. Here every pass has the current columns, for any number of dimensions.

Do not use it to generate much text under autocast or compiled: each pass then copies the weights, which
counts where a pass has few tokens.

Errors: a rank above the inputs of a layer; ``layers`` matches no linear layer, or one that has an adapter or
a tied weight.
"""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Surgery
from trainwright.families.bits import Bits, dense
from trainwright.lm import deltas
from trainwright.lm.layers import (
    Adapter,
    as_linear_weight,
    compute_dtype,
    freeze,
    in_out,
    installed,
    linear_layers,
    put,
)

FILE = "paca.safetensors"


class Paca(Surgery):
    """Partial connection adaptation of the linear layers that ``layers`` names."""

    rank: int = 8
    """Input columns of each layer that are trained."""
    alpha: float = 16.0
    """Scale of the trained columns, divided by the rank: how far a step of the optimizer moves them."""
    layers: str = "all-linear"
    """Layers: all-linear, attention, mlp, or a glob of module names such as *.q_proj."""
    example: ClassVar[dict[str, Any]] = {"rank": 2, "alpha": 4.0}

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be 1 or more, not {self.rank}.")
        if self.alpha <= 0:
            raise ValueError(f"alpha must be above 0, not {self.alpha}.")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def claims(self, model: nn.Module) -> set[str]:
        return {f"{name}.weight" for name in linear_layers(model, self.layers)}

    def operate(self, model: nn.Module, ctx: Context) -> None:
        layers = linear_layers(model, self.layers)
        narrow = next((n for n, m in layers.items() if in_out(m)[0] < self.rank), None)
        if narrow is not None:
            raise UserError(
                f"paca: rank = {self.rank} is more than the {in_out(layers[narrow])[0]} inputs of {narrow}; "
                "choose a lower rank, or a narrower 'layers'."
            )
        freeze(model)
        for name, layer in layers.items():
            put(model, name, PacaLinear(layer, self, ctx.rng(f"paca/{name}", at=0)))

    def mine(self, model: nn.Module) -> dict[str, PacaLinear]:
        """The layers that this method has put in, by name."""
        return installed(model, PacaLinear, self)

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        for name, layer in self.mine(model).items():
            weight = as_linear_weight(layer)
            weight.copy_(copied(weight, layer.columns, layer.index, self.scale, weight.dtype))
            put(model, name, layer.plain())

    def learned(self, model: nn.Module) -> dict[str, Tensor]:
        return {
            f"{n}.{part}": getattr(m, part)
            for n, m in self.mine(model).items()
            for part in ("columns", "index")
        }

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """``paca.safetensors``: ``NAME.columns`` [out, rank], unscaled, and ``NAME.index`` [rank]."""
        deltas.write(self.learned(model), folder / FILE)

    def load_delta(self, model: nn.Module, folder: Path) -> None:
        deltas.read(self.learned(model), folder / FILE)


class PacaLinear(Adapter):
    """A linear layer of which one ``Paca`` trains some columns."""

    index: Tensor

    @torch.no_grad()
    def __init__(self, layer: nn.Module, settings: Paca, rng: torch.Generator) -> None:
        super().__init__(layer)
        self.settings = settings
        index = torch.randperm(self.in_features, generator=rng)[:settings.rank].sort().values
        self.register_buffer("index", index.to(self.weight.device))
        start = as_linear_weight(self).index_select(1, self.index).float()
        self.columns = nn.Parameter(start.div_(settings.scale).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        kind = compute_dtype(x)
        return Columns.apply(
            x.to(kind), self.columns, as_linear_weight(self), self.index, self.bias, self.settings.scale
        )


class Columns(torch.autograd.Function):
    """``F.linear(x, V, bias)``, where V is ``weight`` [out, in] with ``scale * columns`` [out, rank] as its
    columns ``index``.

    Only ``columns`` and ``x`` [..., in] get a gradient; of ``x`` the entries at ``index`` are kept. V is
    ``weight`` itself, with the columns in it while a product takes; where ``x`` has another dtype, a copy
    that each pass makes and none keeps.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, columns: Tensor, weight: Tensor, index: Tensor, bias: Tensor | None, scale: float
    ) -> Tensor:
        part = x.reshape(-1, x.shape[-1]).T.index_select(
            0, index
        )  # [rank, tokens], a copy: a view would keep all of x
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
                given = weight, columns, index, ctx.scale
                compiled = torch.compiler.is_compiling()
                grad_x = _back(grad, *given) if compiled else product(lambda v: grad @ v, *given, grad.dtype)
            if ctx.needs_input_grad[1]:
                grad_columns = (part @ grad.reshape(-1, grad.shape[-1])).T.to(columns.dtype).mul_(ctx.scale)
        return grad_x, grad_columns, None, None, None, None


def product(of: Callable[[Tensor], Tensor], weight: Tensor, columns: Tensor, index: Tensor, scale: float,
            kind: torch.dtype) -> Tensor:
    """``of(V)`` in the dtype ``kind``. Autograd does not see what is put into ``data`` and taken out."""
    if weight.dtype != kind or isinstance(weight, Bits) or torch.compiler.is_compiling():
        return of(copied(weight, columns, index, scale, kind))
    old = weight.index_select(1, index)
    try:
        weight.data.index_copy_(1, index, columns.mul(scale).to(kind))
        return of(weight)
    finally:
        weight.data.index_copy_(1, index, old)


def copied(weight: Tensor, columns: Tensor, index: Tensor, scale: float, kind: torch.dtype) -> Tensor:
    """A copy of ``weight`` [out, in] in the dtype ``kind``, with ``scale * columns`` at ``index``."""
    whole = dense(weight, kind) if isinstance(weight, Bits) else weight.to(kind, copy=True)
    return whole.index_copy_(1, index, columns.mul(scale).to(kind))


@torch.library.custom_op("trainwright::columns_back", mutates_args=())
def _back(grad: Tensor, weight: Tensor, columns: Tensor, index: Tensor, scale: float) -> Tensor:
    """Opaque to the compiler, which would make V once for both passes and keep it: all the weights again."""
    return grad @ copied(weight, columns, index, scale, grad.dtype)


@_back.register_fake
def _(grad: Tensor, weight: Tensor, columns: Tensor, index: Tensor, scale: float) -> Tensor:
    return grad.new_empty(*grad.shape[:-1], weight.shape[1])
