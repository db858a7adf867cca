"""R-AMT: learn which weights of a frozen model to keep, and drop gradients that harm general knowledge.

"Regularized Mask Tuning: Uncovering Hidden Knowledge in Pre-trained Vision-Language Models" (arXiv
2307.15049). Each weight of the masked layers has a score s, ``start`` at first. With W frozen and m = 1 where
s > ``threshold``, else 0,

    y = (W m) x + b,    dL/ds = dL/d(W m) W    (straight through the threshold).

Let a be the gradient of the task's loss plus ``penalty`` times the 2-norm (not squared) of a matrix' scores,
and b that of the cross-entropy between the predictions of the original model and those of the masked one.
With U uniform in (0, 1) for each entry and step,

    P = (sign(a) (a + b) / (|a| + |b| + 1e-8) + 1) / 2,
    a <- ((1 - lambda) + lambda [P > U]) a,    lambda = gradient_dropout.

b itself is never applied. The paper masks the attention of an image encoder, and its task is to label images.
Here the layers are a language model's, and the task is the next token wherever the data has a target, which
in conversations is at the assistant's tokens. The method brings this loss along and is the stage's only
objective. The second pass over a step's batch, which computes b, costs as much as the first plus a forward
pass of the original model.

Name it before ``clip_gradients`` and the optimizer. The paper uses Adam without weight decay (decay would
mask everything) at 8e-5: a score falls below the threshold after 60 steps of one sign, so short stages need a
higher rate. ``masked``, the share of weights that are off, is logged: a few percent. For export W m is
written into the layers; the delta beside it has one bit a weight. Scores and the optimizer's moments take as
much memory as in full training of the same layers.

Do not use it to teach the model something new: no weight changes, some only go.

State: ``shared``: part (whose loss the current pass computes).
Errors: ``layers`` matches no linear layer, or one that has an adapter or a tied weight; another objective in
the stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch, Objective, State, Surgery, Tensors, Update
from trainwright.lm import deltas
from trainwright.lm.layers import Adapter, as_linear_weight, freeze, installed, linear_layers, put
from trainwright.lm.losses import evaluating, field, logged_losses, positions, trained_tokens
from trainwright.lm.prefix import prefix_mask

FILE = "r_amt.safetensors"
TASK, GENERAL, OTHERS = "task", "general", "others"


class RAmt(Surgery, Objective, Update):
    """A trained binary mask over frozen weights, with gradient dropout."""

    layers: str = "attention"
    """Layers that are masked: all-linear, attention, mlp, or a glob of module names such as *.q_proj."""
    gradient_dropout: float = 1.0
    """lambda: how much of a gradient is taken away where it is dropped; 0 leaves the second pass out."""
    penalty: float = 1e-4
    """Factor of the 2-norm of each matrix' scores in the task's loss."""
    start: float = 1e-2
    """Every score at the start."""
    threshold: float = 5e-3
    """Score above which a weight is kept."""
    params: str = "*.scores"
    """Glob of the scores whose gradients are changed: all of them."""
    weight: float = 1.0
    """Factor of the loss."""

    def __post_init__(self) -> None:
        if not 0 <= self.gradient_dropout <= 1:
            raise ValueError(
                f"gradient_dropout must be at least 0 and at most 1, not {self.gradient_dropout}."
            )
        if self.penalty < 0:
            raise ValueError(f"penalty must be 0 or more, not {self.penalty}.")
        if self.start <= self.threshold:
            raise ValueError(
                f"start must be above threshold, not {self.start} with a threshold of {self.threshold}."
            )

    def claims(self, model: nn.Module) -> set[str]:
        return {f"{name}.weight" for name in linear_layers(model, self.layers)}

    def operate(self, model: nn.Module, ctx: Context) -> None:
        layers = linear_layers(model, self.layers)
        freeze(model)
        for name, layer in layers.items():
            put(model, name, MaskedLinear(layer, self))

    def masked(self, model: nn.Module) -> dict[str, MaskedLinear]:
        """The layers that this method has put in, by name."""
        return installed(model, MaskedLinear, self)

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        for name, layer in self.masked(model).items():
            as_linear_weight(layer).mul_(layer.mask())
            put(model, name, layer.plain())

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """``r_amt.safetensors``: ``NAME.mask`` of each layer, a bit a weight [out, in], lowest first."""
        deltas.write({f"{n}.mask": packed(m.mask()) for n, m in self.masked(model).items()}, folder / FILE)

    @torch.no_grad()
    def load_delta(self, model: nn.Module, folder: Path) -> None:
        layers = self.masked(model)
        bits = {f"{n}.mask": packed(m.mask()) for n, m in layers.items()}
        deltas.read(bits, folder / FILE)
        for name, layer in layers.items():
            layer.scores.copy_(self.start * unpacked(bits[f"{name}.mask"], layer.scores.shape))

    def init(self, model: nn.Module, ctx: Context) -> State:
        return {"shared": {"part": TASK}}

    def count(self, batch: Batch) -> float:
        return trained_tokens(batch)

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        part = state["shared"]["part"]
        if part == OTHERS:
            return torch.zeros(batch["targets"].shape, device=ctx.device, requires_grad=True)
        return general_losses(model, batch) if part == GENERAL else logged_losses(model, batch, ctx)

    def gradients(self, part: str, state: State, ctx: Context) -> Tensors:
        """Of this step's batches, with another loss than the task's."""
        assert ctx.again is not None
        state["shared"]["part"] = part
        try:
            return ctx.again()
        finally:
            state["shared"]["part"] = TASK

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        if ctx.step == 0 and self.gradients(OTHERS, state, ctx):
            raise UserError(
                "r_amt brings the loss of the task along: leave the other objectives out of the stage."
            )
        general = self.gradients(GENERAL, state, ctx) if self.gradient_dropout else {}
        out = {}
        for name, update in updates.items():
            scores = params[name]
            mine = sharding.local(scores.detach())
            ctx.note("masked", (mine <= self.threshold).float().mean(), mine.numel())
            pull = scores * (self.penalty / sharding.norm([scores]))
            out[name] = update + pull
            if general:
                drawn = torch.rand(scores.shape, generator=ctx.rng(f"r_amt/{name}")).to(mine.device)
                kept = agreement(ctx.grads[name] + pull, general[name]) > sharding.like(drawn, scores)
                out[name] *= 1 - self.gradient_dropout * ~kept
        return out


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
        self.scores = nn.Parameter(
            torch.full(shape, settings.start, dtype=torch.float32, device=self.weight.device)
        )

    def mask(self) -> Tensor:
        """[out, in], bool."""
        return self.scores.detach() > self.settings.threshold

    def forward(self, x: Tensor) -> Tensor:
        weight = as_linear_weight(self)
        if self.masked:
            weight = Masked.apply(weight, self.scores, self.settings.threshold)
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
    """Cross-entropy [R, L], float32, of what the masked model predicts under what the original one does, at
    each position that has a target; 0 elsewhere. No gradient flows through the original."""
    trained = field(batch, "targets") != UNTRAINED
    with torch.no_grad(), evaluating(model), unmasked(model):
        before = _logits(model, batch)[trained].softmax(-1)
    losses = -(before * _logits(model, batch)[trained].log_softmax(-1)).sum(-1)
    return losses.new_zeros(trained.shape).masked_scatter(trained, losses)


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    places = positions(model, batch)
    given = {
        n: t
        for n, t in (("position_ids", places), ("attention_mask", prefix_mask(model, batch)))
        if t is not None
    }
    out = model(input_ids=batch["input_ids"], use_cache=False, **given)
    return out.logits.float()  # type: ignore[no-any-return]


def agreement(task: Tensor, general: Tensor) -> Tensor:
    """P = (sign(a) (a + b) / (|a| + |b|) + 1) / 2: 1 where b has the sign of a, less where b opposes it."""
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
