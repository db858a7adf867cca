"""A linear layer kept as its singular value decomposition, of which some pairs of vectors are trained."""
from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainwright.core import sharding
from trainwright.lm.layers import as_linear_weight
from trainwright.pretrain._factored import FactoredLinear

Factors = tuple[Tensor, Tensor, Tensor]
"""U [out, m], S [m] and V [in, m], m = min(in, out)."""


def decompose(weight: Tensor) -> Factors:
    """The singular value decomposition in float32, values falling."""
    u, s, vh = torch.linalg.svd(weight.float(), full_matrices=False)
    return u, s, vh.T


def probabilities(s: Tensor) -> Tensor:
    """How likely each pair is drawn first: half evenly, half by the size of its singular value."""
    s = s.detach().double().cpu()
    return 0.5 / len(s) + 0.5 * s / s.sum().clamp(min=1e-300)


def drawn(s: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """All indices of ``s``: first ``count`` that are drawn without replacement, in order, then the others, in order."""
    every = torch.arange(len(s))
    if count >= len(s) or s.device.type == "meta":
        return every
    chosen = torch.multinomial(probabilities(s), count, replacement=False, generator=rng)
    active = torch.zeros(len(s), dtype=torch.bool).index_fill(0, chosen, True)
    return torch.cat([every[active], every[~active]]).to(s.device)


class SpectralLinear(FactoredLinear):
    """y = U diag(S) V^T x + bias. The first ``rank`` columns are ``U`` and ``V``, which train, the others ``U_rest`` and
    ``V_rest``, which do not; S is in the order of both. All are float32: in bfloat16 vectors are not orthogonal."""

    U: nn.Parameter
    S: nn.Parameter
    V: nn.Parameter
    U_rest: nn.Parameter | None
    V_rest: nn.Parameter | None

    @torch.no_grad()
    def __init__(self, layer: nn.Module, settings: Any, rank: int, rng: torch.Generator) -> None:
        super().__init__(layer, settings)
        U, S, V = decompose(as_linear_weight(layer))
        self.rank, order = min(rank, len(S)), drawn(S, rank, rng)
        parts = self.parts((U[:, order], S[order], V[:, order]))
        for name in ("U", "S", "V", "U_rest", "V_rest"):
            kept = nn.Parameter(parts[name], requires_grad="rest" not in name) if name in parts else None
            self.register_parameter(name, kept)

    def parts(self, factors: Factors) -> dict[str, Tensor]:
        """What each parameter holds of these factors, of which the first columns are to be trained."""
        (U, S, V), r = factors, self.rank
        rest = {"U_rest": U[:, r:], "V_rest": V[:, r:]} if r < len(S) else {}
        return {n: t.contiguous() for n, t in ({"U": U[:, :r], "S": S, "V": V[:, :r]} | rest).items()}

    def factors(self) -> Factors:
        """All of U, S and V, whole, in the order in which they are kept."""
        u, v = ([sharding.full(p.detach()) for p in parts if p is not None]
                for parts in ((self.U, self.U_rest), (self.V, self.V_rest)))
        return torch.cat(u, dim=1), sharding.full(self.S.detach()), torch.cat(v, dim=1)

    @property
    def draws(self) -> int:
        """How many draws of so many pairs make as many as there are."""
        return math.ceil(len(self.S) / self.rank)

    def product(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        return Product.apply(rows, self.U, self.S, self.V, self.U_rest, self.V_rest, bias)  # type: ignore[no-any-return, no-untyped-call]

    def matrix(self) -> Tensor:
        return together(self.U, self.S, self.V, self.U_rest, self.V_rest)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, trained pairs={self.rank} of {len(self.S)}"


def together(U: Tensor, S: Tensor, V: Tensor, U_rest: Tensor | None, V_rest: Tensor | None) -> Tensor:
    """W = U diag(S) V^T, [out, in]."""
    rank = U.shape[1]
    w = (U * S[:rank]) @ V.T
    return w if U_rest is None or V_rest is None else w.addmm_(U_rest * S[rank:], V_rest.T)


class Product(torch.autograd.Function):
    """y = W x + bias for rows x, where W is made when it is needed and never kept.

    With G = dL/dW the gradient of S is the true one, u_i^T G v_i; those of the trained vectors are G v_i and G^T u_i, without the
    factor S_i of the true ones.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, U: Tensor, S: Tensor, V: Tensor, U_rest: Tensor | None, V_rest: Tensor | None,
                bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, U, S, V, U_rest, V_rest)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, together(U, S, V, U_rest, V_rest).to(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, U, S, V, U_rest, V_rest = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            dx = grad @ together(U, S, V, U_rest, V_rest).to(grad.dtype) if ctx.needs_input_grad[0] else None
            G = (grad.T @ x).to(U.dtype)
            dU, dV = G @ V, G.T @ U
            dS = (U * dU).sum(0)
            if U_rest is not None:
                dS = torch.cat([dS, (U_rest * (G @ V_rest)).sum(0)])
        return dx, dU, dS, dV, None, None, grad.sum(0) if ctx.needs_input_grad[6] else None
