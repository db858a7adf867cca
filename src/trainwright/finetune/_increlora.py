"""Low-rank additions whose components come into use one by one, how much the loss depends on each, and who gets more."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainwright.core.method import State, Tensors
from trainwright.lm.layers import Adapter, as_linear_weight

if TYPE_CHECKING:
    from trainwright.finetune.increlora import Increlora

WAITING = 1e-5
"""The singular value with which a component waits to be taken into use."""
QUIET = 2.0**-20
"""Factor of scores on their way through the chain, so that they do not count in a norm that is clipped."""


class IncreloraLinear(Adapter):
    """A linear layer with room for ``most`` components b e a', of which the first are in use and the next few wait."""

    ranks: Tensor
    """How many are in use, and how many wait."""

    def __init__(self, layer: nn.Module, settings: Increlora, rng: torch.Generator) -> None:
        super().__init__(layer)
        self.settings, self.scored, device, most = settings, True, self.weight.device, settings.room
        start = torch.full((most,), WAITING)
        start[0] = 0
        self.increlora_A = nn.Parameter(torch.empty(most, self.in_features).normal_(0, 0.02, generator=rng).to(device))
        self.increlora_B = nn.Parameter(torch.empty(self.out_features, most).normal_(0, 0.02, generator=rng).to(device))
        self.increlora_E = nn.Parameter(start.to(device))
        self.increlora_score = nn.Parameter(torch.zeros(1, device=device))
        self.register_buffer("ranks", torch.zeros(2, dtype=torch.int64, device=device))
        self.use(1, waiting=settings.rank > 1)

    def use(self, rank: int, waiting: bool) -> None:
        """Take so many components into use; whether more are to wait."""
        more = min(self.settings.grow, self.settings.room - rank) if waiting else 0
        self.ranks.copy_(torch.tensor([rank, more]))

    def values(self) -> Tensor:
        """The scaled singular values [most]: zero for components neither in use nor waiting, without gradient for the waiting."""
        (active, waiting), place = self.ranks, torch.arange(len(self.increlora_E), device=self.ranks.device)
        rest = self.increlora_E.detach() * (place < active + waiting)
        return torch.where(place < active, self.increlora_E, rest) * (self.settings.alpha / (active + 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        kind = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        x, values = x.to(kind), self.values()
        low = F.linear(x, self.increlora_A.to(kind)) * values.to(kind)
        y = self.linear(x) + F.linear(low, self.increlora_B.to(kind))
        if self.scored and torch.is_grad_enabled():
            y = Scored.apply(y, x.detach(), self.increlora_A.detach(), self.increlora_B.detach(), values.detach(),
                             self.increlora_score)
        return y

    @torch.no_grad()
    def folded(self) -> nn.Module:
        """The plain layer that computes the same; the weight changes in place."""
        weight = as_linear_weight(self)
        weight.copy_(weight.float() + (self.increlora_B * self.values()) @ self.increlora_A)
        return self.plain()


class Scored(torch.autograd.Function):
    """y as it is; the gradient of ``score`` is sum |dW * dL/dW| / sqrt(entries), summed over the rows of the batch.

    Each row has a dL/dW of its own, so that no cut of a step into micro-batches and ranks makes another score.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, A: Tensor, B: Tensor, values: Tensor, score: Tensor) -> Tensor:
        ctx.save_for_backward(x, A, B, values)
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, A, B, values = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            addition = ((B * values) @ A).abs_()
            score = addition.new_zeros(())
            for g, row in zip(grad, x, strict=True) if grad.ndim > 2 else [(grad, x)]:
                dense = g.reshape(-1, g.shape[-1]).T @ row.reshape(-1, row.shape[-1])
                score += (dense.float().abs_() * addition).sum() * (QUIET / math.sqrt(addition.numel()))
        return grad, None, None, None, None, score.view(1)


def remember(scores: dict[str, Tensor], shared: State, beta1: float, beta2: float) -> None:
    """Move each layer's sensitivity and uncertainty by its score of this step."""
    now = (torch.cat(list(scores.values())) / QUIET).tolist()         # one wait for the device, not one a layer
    for name, score in zip(scores, now, strict=True):
        known = shared["sensitivity"][name] = beta1 * shared["sensitivity"][name] + (1 - beta1) * score
        shared["uncertainty"][name] = beta2 * shared["uncertainty"][name] + (1 - beta2) * abs(score - known)


def orthogonal(name: str, layer: IncreloraLinear, updates: Tensors, params: Tensors, factor: float) -> Tensors:
    """A layer's gradients with that of the orthogonality of its components in use and waiting; none for the score."""
    A, B, used = f"{name}.increlora_A", f"{name}.increlora_B", int(layer.ranks.sum())
    out = {A: updates[A].clone(), B: updates[B].clone()}
    out[A][:used].add_(orthonormal(params[A][:used]), alpha=factor)
    out[B][:, :used].add_(orthonormal(params[B][:, :used].T).T, alpha=factor)
    return out | {f"{name}.increlora_score": torch.zeros_like(updates[f"{name}.increlora_score"])}


def orthonormal(matrix: Tensor) -> Tensor:
    """The gradient of ||M M' - I||_F, whose rows are to be orthonormal."""
    off = matrix @ matrix.T - torch.eye(len(matrix), device=matrix.device)
    return 2 * off @ matrix / off.norm().clamp(min=1e-12)


def allocate(shared: State, total: int, grow: int, most: int) -> dict[str, int]:
    """Ranks that sum to ``total``: the most important layers get ``grow`` more, one after another, until none are left to give.

    None gets beyond ``most``; if there are more to give than layers, it begins anew with the first.
    """
    out, left = dict(shared["ranks"]), total - sum(shared["ranks"].values())
    order = sorted(out, key=lambda name: -shared["sensitivity"][name] * shared["uncertainty"][name])
    while left > 0 and any(out[name] < most for name in order):
        for name in order:
            more = min(grow, most - out[name], left)
            out[name] += more
            left -= more
    return out
