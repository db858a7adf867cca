"""Frozen linear layers whose weights pass through a learned binary mask, the model without the masks, and masks as bits."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainwright.core.method import UNTRAINED, Batch
from trainwright.lm.layers import Adapter, as_linear_weight
from trainwright.lm.losses import evaluating, way_of
from trainwright.lm.prefix import prefix_mask

if TYPE_CHECKING:
    from trainwright.finetune.r_amt import RAmt


class Masked(torch.autograd.Function):
    """W m with m = 1 where s > threshold, else 0. Backward takes m for s itself: dL/ds = dL/d(W m) W."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scores: Tensor, threshold: float) -> Tensor:
        ctx.save_for_backward(weight)
        return weight * (scores > threshold)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, grad.float() * ctx.saved_tensors[0], None


class MaskedLinear(Adapter):
    """A linear layer with a score for each weight."""

    def __init__(self, layer: nn.Module, settings: RAmt) -> None:
        super().__init__(layer)
        self.settings, self.masked = settings, True
        shape = self.out_features, self.in_features
        self.scores = nn.Parameter(torch.full(shape, settings.start, dtype=torch.float32, device=self.weight.device))

    def mask(self) -> Tensor:
        """[out, in], bool."""
        return self.scores.detach() > self.settings.threshold

    def forward(self, x: Tensor) -> Tensor:
        weight = as_linear_weight(self)
        if self.masked:
            weight = Masked.apply(weight, self.scores, self.settings.threshold)  # type: ignore[no-untyped-call]
        return F.linear(x, weight, self.bias)


@contextmanager
def unmasked(model: nn.Module) -> Iterator[None]:
    """The model as it was before any mask."""
    layers = [m for m in model.modules() if isinstance(m, MaskedLinear)]
    for layer in layers:
        layer.masked = False
    try:
        yield
    finally:
        for layer in layers:
            layer.masked = True


def general_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy [R, L], float32, of what the masked model predicts under what the original one does, at each position that
    has a target; 0 elsewhere. No gradient flows through the original."""
    trained = batch["targets"] != UNTRAINED
    with torch.no_grad(), evaluating(model), unmasked(model):
        before = _logits(model, batch)[trained].softmax(-1)
    losses = -(before * _logits(model, batch)[trained].log_softmax(-1)).sum(-1)
    return losses.new_zeros(trained.shape).masked_scatter(trained, losses)


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    places = batch["position_ids"] if way_of(model).takes_places else None
    given = {n: t for n, t in (("position_ids", places), ("attention_mask", prefix_mask(model, batch))) if t is not None}
    return model(input_ids=batch["input_ids"], use_cache=False, **given).logits.float()  # type: ignore[no-any-return]


def agreement(task: Tensor, general: Tensor) -> Tensor:
    """P = (sign(a) (a + b) / (|a| + |b|) + 1) / 2 of two gradients: 1 where b has the sign of a, and less the more
    b speaks against it."""
    return ((task.sign() * (task + general)).div_(task.abs() + general.abs() + 1e-8) + 1).div_(2)


def packed(mask: Tensor) -> Tensor:
    """Eight entries a byte, row after row."""
    eights = F.pad(mask.flatten(), (0, -mask.numel() % 8)).view(-1, 8).to(torch.uint8)
    return (eights << _bits(mask)).sum(1, dtype=torch.uint8)


def unpacked(bits: Tensor, shape: torch.Size) -> Tensor:
    """The mask of which ``packed`` made these bytes."""
    return ((bits[:, None] >> _bits(bits)) & 1).flatten()[:shape.numel()].view(shape).bool()


def _bits(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)
