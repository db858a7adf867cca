"""SLTrain: pretrain each weight matrix as a low-rank product plus a sparse matrix at fixed random positions.

"SLTrain: a sparse plus low-rank approach for parameter and memory efficient pretraining" (arXiv
2406.02214).

    W = s B A + S,    s = alpha / rank,    y = W x + bias

W is [out, in]; B [out, rank] starts at zero, A [rank, in] and the values of S uniform in +-1/sqrt(in), so
that W starts as S. S has n = int(density in out) entries, whose positions are the first n of a random
permutation and never change. There is no dense W among the parameters: it is assembled for a product,
discarded, and assembled again for the gradients. With G = dL/dW:
    dB = s G A^T,    dA = s B^T G,    dvalues = G at the positions of S.

A layer keeps rank (in + out) + n numbers and its bias in place of in out, an optimizer as many for each of
its moments, and 4 bytes per position (the authors' code: 8). It costs time: two products B A more per
layer and micro-batch. Embeddings, norms and the head stay as they are and train as usual. The export
writes W into a plain layer. Published (rank, alpha, density), with a peak rate of 3e-3: 60 M parameters
128, 32, 0.03; 350 M 256, 16, 0.03; 1 B 512, 8, 0.03; 7 B 1024, 8, 0.05.

Do not use it on a trained model, whose matrices it discards (see ``lora``). Compare it with low-rank
training of the same number of parameters, not of the same rank. The paper's saving of 73 % also includes
8-bit Adam and layer-wise updates.

Errors: ``layers`` matches no linear layer, or one that is taken or tied; settings under which the layers
would not get smaller.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Surgery
from trainwright.lm.factored import FactoredLinear
from trainwright.lm.layers import as_linear_weight, in_out, linear_layers, put


class Sltrain(Surgery):
    """Pretrains each weight matrix as a low-rank product plus a sparse matrix at random positions."""

    rank: int = 128
    """Rank of the product: columns of B, rows of A."""
    alpha: float = 32.0
    """Scale of the product, divided by the rank; the sparse matrix is not scaled."""
    density: float = 0.03
    """Share of a matrix' entries that are in the sparse matrix."""
    layers: str = "all-linear"
    """Layers: all-linear, attention, mlp, or a glob of module names such as *.q_proj."""
    neutral: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {"rank": 2, "alpha": 1.0, "density": 0.1}

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be 1 or more, not {self.rank}.")
        if not 0 < self.density < 1:
            raise ValueError(f"density must be above 0 and below 1, not {self.density}.")

    def claims(self, model: nn.Module) -> set[str]:
        return {f"{name}.weight" for name in linear_layers(model, self.layers)}

    def operate(self, model: nn.Module, ctx: Context) -> None:
        layers = linear_layers(model, self.layers)
        shapes = [in_out(layer) for layer in layers.values()]
        before, after = (
            sum(i * o for i, o in shapes),
            sum(self.rank * (i + o) + int(self.density * i * o) for i, o in shapes),
        )
        if after >= before:
            raise UserError(
                f"sltrain: with rank = {self.rank} and density = {self.density} the matrices of layers = "
                f"{self.layers!r} hold {after:,} numbers in place of {before:,}; take a lower rank or "
                "density."
            )
        for name, layer in layers.items():
            put(model, name, SltrainLinear(layer, self, ctx.rng(f"sltrain/{name}", at=0)))

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        for name, layer in [
            (n, m) for n, m in model.named_modules() if isinstance(m, SltrainLinear) and m.settings == self
        ]:
            put(model, name, layer.plain())


class SltrainLinear(FactoredLinear):
    """A linear layer that keeps B, A, and the values and positions of S."""

    places: Tensor
    """Flat positions of S in W [out, in], sorted."""

    def __init__(self, layer: nn.Module, settings: Sltrain, rng: torch.Generator) -> None:
        super().__init__(layer, settings)
        self.scale, like = settings.alpha / settings.rank, as_linear_weight(layer)
        size, bound = self.in_features * self.out_features, 1 / math.sqrt(self.in_features)
        count = int(settings.density * size)
        places = torch.randperm(size, generator=rng)[:count].sort().values
        draw = (
            torch.empty(settings.rank * self.in_features + count)
            .uniform_(-bound, bound, generator=rng)
            .to(like)
        )
        self.B = nn.Parameter(like.new_zeros(self.out_features, settings.rank))
        self.A = nn.Parameter(draw[count:].view(settings.rank, self.in_features).clone())
        self.values = nn.Parameter(draw[:count].clone())
        self.register_buffer("places", places.to(like.device, torch.int32 if size < 2**31 else torch.int64))

    def product(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        parts = [p.to(rows.dtype) for p in (self.B, self.A, self.values)]
        y: Tensor = Product.apply(rows, *parts, self.places, bias, self.scale)  # type: ignore[no-untyped-call]
        return y

    def matrix(self) -> Tensor:
        return together(self.B, self.A, self.values, self.places, self.scale)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.settings.rank}, entries={len(self.values)}"


def together(B: Tensor, A: Tensor, values: Tensor, places: Tensor, scale: float) -> Tensor:
    """W = scale B A + S, [out, in]."""
    w = torch.mm(B, scale * A)
    w.view(-1).index_add_(0, places, values)
    return w


class Product(torch.autograd.Function):
    """y = W x + bias for rows x, with W assembled when needed and never kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        B: Tensor,
        A: Tensor,
        values: Tensor,
        places: Tensor,
        bias: Tensor | None,
        scale: float,
    ) -> Tensor:
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
        return (
            dx,
            dw @ (ctx.scale * A).T,
            ctx.scale * (B.T @ dw),
            dw.view(-1).index_select(0, places),
            None,
            dbias,
            None,
        )
