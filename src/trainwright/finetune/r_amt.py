"""R-AMT: train which weights of a frozen model to keep, and drop gradients that general knowledge speaks against.

"Regularized Mask Tuning: Uncovering Hidden Knowledge in Pre-trained Vision-Language Models" (arXiv 2307.15049). Each weight of
the masked layers has a score s, ``start`` at first. With W frozen and m = 1 where s > ``threshold``, else 0,

    y = (W m) x + b,    dL/ds = dL/d(W m) W    (straight through the threshold).

Let a be the gradient of the task's loss plus ``penalty`` times the 2-norm of a matrix' scores, not squared, and b that of the
cross-entropy between the original model's predictions and the masked one's. With U uniform in (0, 1) for each entry and step,

    P = (sign(a) (a + b) / (|a| + |b| + 1e-8) + 1) / 2,    a <- ((1 - lambda) + lambda [P > U]) a,    lambda = gradient_dropout.

b itself is never applied. The paper masks the attention of an image encoder, with class labels for a task. Here the layers are a
language model's, and the task is the next token wherever the data has a target: an assistant's tokens too. The method brings that
loss along and is the stage's only objective. The second pass over a step's batch, which makes b, costs as much as the first and
a forward pass of the original model.

Name it before ``clip`` and the optimizer. The paper has Adam without weight decay (decay would mask all) at 8e-5: a score falls
below the threshold after 60 steps of one sign, so that short stages need a higher rate. Logged is ``masked``, the share of
weights that are off: a few percent. W m is written into the layers for export, and the delta beside it has a bit a weight.
Scores and the optimizer's moments take as much memory as those of full training of the same layers.
Not for learning what the model does not know: no weight changes, some only go.

Errors: ``layers`` matches no linear layer, one that has an adapter, or one whose weight is tied; another objective in the stage.
State: ``shared``: part (which loss the pass that runs is of).
"""
from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.core.bench import Bench
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Batch, Objective, State, Surgery, Tensors, Update
from trainwright.finetune._mask_tuning import MaskedLinear, agreement, general_losses, packed, unpacked
from trainwright.lm import deltas
from trainwright.lm.layers import as_linear_weight, freeze, linear_layers, put
from trainwright.lm.losses import logged_losses, trained_tokens

FILE = "r_amt.safetensors"
TASK, GENERAL, OTHERS = "task", "general", "others"


class RAmt(Surgery, Objective, Update):
    """A trained binary mask over frozen weights, with gradient dropout."""

    layers: str = "attention"
    """Layers whose weights are masked: all-linear, attention, mlp, or a glob of module names such as *.q_proj."""
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
    bench: ClassVar[Bench | None] = Bench(
        suite="adapt", claim="18.73 points over the untouched model with 2.56 % of the weights masked, above earlier tuning",
        add=({"use": "r_amt"}, {"use": "clip", "norm": 1.0}, {"use": "adamw", "lr": 9e-4, "weight_decay": 0.0}),
        drop=("next_token", "clip", "adamw"), versus="LoRA",
        baseline=({"use": "lora", "rank": 8}, {"use": "adamw", "lr": 6e-3, "weight_decay": 0.0}),
        search={"adamw.lr": [3e-4, 9e-4, 2.7e-3]}, scale="a mask finds only what a large pretrained model knows already")

    def __post_init__(self) -> None:
        if not 0 <= self.gradient_dropout <= 1:
            raise ValueError(f"gradient_dropout must be at least 0 and at most 1, not {self.gradient_dropout}.")
        if self.penalty < 0:
            raise ValueError(f"penalty must be 0 or more, not {self.penalty}.")
        if self.start <= self.threshold:
            raise ValueError(f"start must be above threshold, not {self.start} with a threshold of {self.threshold}.")

    def claims(self, model: nn.Module) -> set[str]:
        return {f"{name}.weight" for name in linear_layers(model, self.layers)}

    def operate(self, model: nn.Module, ctx: Context) -> None:
        layers = linear_layers(model, self.layers)
        freeze(model)
        for name, layer in layers.items():
            put(model, name, MaskedLinear(layer, self))

    def masked(self, model: nn.Module) -> dict[str, MaskedLinear]:
        """The layers that this method, and not another of its kind, has put in."""
        return {n: m for n, m in model.named_modules() if isinstance(m, MaskedLinear) and m.settings == self}

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        for name, layer in self.masked(model).items():
            as_linear_weight(layer).mul_(layer.mask())
            put(model, name, layer.plain())

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """``r_amt.safetensors``: of each layer ``NAME.mask``, a bit a weight of [out, in], eight in a byte from the lowest."""
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
            raise UserError("r_amt brings the loss of the task along: leave the other objectives out of the stage.")
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
