"""CLIP: each picture and its caption are drawn together, and apart from all other pairs of the step.

"Learning Transferable Visual Models From Natural Language Supervision" (arXiv 2103.00020). With u_i, v_i the
embeddings of picture i and text i of the step, of length 1, and s the learned logarithm of an inverse
temperature,

    l_ij   = exp(s) u_i . v_j
    loss_i = - (log softmax_j l_ij)_i / 2 - (log softmax_j l_ji)_i / 2        the loop divides by the pairs

The softmax runs over all pairs of the step, on all ranks and in all micro-batches: a step is one contrast,
however it is cut. As in the paper, exp(s) is held at 100 at the most, after each step, and two pairs with the
same caption are each other's negatives like any others.

It reads ``pixel_values`` (float [R, channels, height, width]), ``input_ids`` and ``attention_mask`` (int64
[R, L]), which ``examples`` makes. Logs ``accuracy_image`` and ``accuracy_text`` (how often the right one of
all pairs of the step is the most similar) and ``logit_scale``, which is exp(s).

A small step teaches little, for want of negatives. Where a large one does not fit into memory, ``accumulate``
cuts it, at the price of computing each micro-batch twice. Left out of the paper: half-precision weights. The
random crop is a method of its own, ``random_crop``.

Not for models that generate, nor where most pairs of a step would be right for each other.

Errors: a batch without pictures or texts; a model without a learned scale.
"""
from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.core.claims import match
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Batch, Objective, State, Tensors, Update
from trainwright.families import image_embeddings, text_embeddings

LARGEST = math.log(100.0)
"""Of s."""


class Clip(Objective, Update):
    """Symmetric cross-entropy of which caption belongs to which picture, one number a pair."""

    params: str = "*logit_scale"
    """Glob of the parameter s."""
    families: ClassVar[tuple[str, ...]] = ("image_text",)
    contrasts: ClassVar[bool] = True
    reads_grads: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {}
    beside: ClassVar[tuple[dict[str, Any], ...]] = (
        {"use": "examples", "fields": ["image", "text"], "length": 24},)

    def init(self, model: nn.Module, ctx: Context) -> State:
        if not isinstance(getattr(model, "logit_scale", None), Tensor):
            raise UserError(f"clip: a {type(model).__name__} has no logit_scale, the learned temperature.")
        return {}

    def count(self, batch: Batch) -> float:
        if missing := [n for n in ("pixel_values", "input_ids", "attention_mask") if n not in batch]:
            raise UserError(f"clip: the batch has no {missing[0]}: it takes pairs of a picture and a text; "
                            "{ use = \"examples\", fields = [\"image\", \"text\"] } makes them.")
        return float(len(batch["pixel_values"]))

    def represent(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Batch:
        """The embeddings of pictures and texts, float32 [R, d] each."""
        return {"image": image_embeddings(model, batch["pixel_values"]),
                "text": text_embeddings(model, batch["input_ids"], batch["attention_mask"])}

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        """``batch``: the embeddings of all pairs of the step."""
        scale: Tensor = sharding.within(model, _scale)
        logits = scale * batch["image"] @ batch["text"].T
        right = torch.arange(len(logits), device=logits.device)
        for name, way in (("image", logits), ("text", logits.T)):
            ctx.note(f"accuracy_{name}", (way.detach().argmax(1) == right).float().mean())
        ctx.note("logit_scale", scale.detach())
        losses = [F.cross_entropy(way, right, reduction="none") for way in (logits, logits.T)]
        return (losses[0] + losses[1]) / 2

    def settle(self, params: Tensors, state: State, ctx: Context) -> None:
        for name in match(self.params, params):
            sharding.local(params[name]).clamp_(max=LARGEST)


def _scale(model: nn.Module) -> Tensor:
    return model.logit_scale.float().exp()  # type: ignore[operator, return-value]
