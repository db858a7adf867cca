"""A weight taken apart along the covariance of what its layer reads, and the layer that trains a part of it."""
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainwright.core.errors import UserError
from trainwright.lm.layers import Adapter, as_linear_weight

if TYPE_CHECKING:
    from trainwright.finetune.corda import Corda

DAMPING = 0.01
"""Share of its mean that is added to the diagonal of a covariance before it is inverted."""
INVERTED = 0.05
"""How far the product with the inverse may be from the identity; beyond, the damping is doubled."""


class CordaLinear(Adapter):
    """A linear layer of which one ``Corda`` trains some terms; ``weight`` holds the others."""

    start_A: Tensor
    start_B: Tensor

    @torch.no_grad()
    def __init__(self, layer: nn.Module, settings: Corda, covariance: Tensor | None, name: str) -> None:
        super().__init__(layer)
        self.settings, rank = settings, settings.rank
        U, S, V = decompose(as_linear_weight(self).float(), covariance, name)
        chosen = slice(-rank, None) if settings.mode == "knowledge_preserved" else slice(rank)
        root = S[chosen].sqrt()
        A, B = root[:, None] * V[chosen], U[:, chosen] * root
        self.corda_A, self.corda_B = nn.Parameter(A.contiguous()), nn.Parameter(B.contiguous())
        self.register_buffer("start_A", A.clone(memory_format=torch.contiguous_format))
        self.register_buffer("start_B", B.clone(memory_format=torch.contiguous_format))
        self.add(-B @ A)

    @torch.no_grad()
    def add(self, delta: Tensor) -> None:
        """Add to the frozen weight, in float32."""
        weight = as_linear_weight(self)
        weight.copy_(weight.float() + delta)

    def forward(self, x: Tensor) -> Tensor:
        kind = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        rows = x.reshape(-1, self.in_features).to(kind)
        y = self.linear(rows).addmm_(F.linear(rows, self.corda_A.to(kind)), self.corda_B.to(kind).T)
        return y.view(*x.shape[:-1], self.out_features)


def decompose(weight: Tensor, covariance: Tensor | None, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """U [out, k], S [k] falling, V [k, in] with U diag(S) V = weight: the SVD of weight D, its right factor times D^-1.

    D is the damped covariance, the identity where there is none.

    Raises:
        UserError: the layer has read nothing, or no numbers.
    """
    if covariance is None:
        return torch.linalg.svd(weight, full_matrices=False)  # type: ignore[no-any-return]
    mean, identity, damping = covariance.diagonal().mean(), torch.eye(len(covariance), device=weight.device), DAMPING
    if not (mean > 0 and mean.isfinite()):
        raise UserError(f"corda: {name} has read nothing but zeros, or no finite numbers, in the samples: leave it out ('layers').")
    damped = covariance + damping * mean * identity
    while torch.dist(damped @ (inverse := torch.linalg.inv(damped)), identity) >= INVERTED:
        damping *= 2
        damped = covariance + damping * mean * identity
    U, S, V = torch.linalg.svd(weight @ damped, full_matrices=False)
    return U, S, V @ inverse
