"""Classification: cross-entropy of each document's label.

    loss = - sum over rows r of log p(label_r | document_r)          the loop divides by the number of rows

p is the softmax over the logits of ``classifier``. It reads ``input_ids``, ``attention_mask`` (int64 [R, L])
and ``labels`` (int64 [R]), which ``examples`` makes with ``fields = ["text", "label"]``. Logs
``train_accuracy``.

Do not use it for texts that a model is to write: those are ``supervised``.

Errors: a model without a classifier; a batch without labels; a label that the classifier does not know.
"""
from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Batch, Objective, State
from trainwright.corpus.tokens import open_corpus
from trainwright.lm.classes import class_logits, head_of, wanted


class Label(Objective):
    """Cross-entropy of the class, one number a document."""

    families: ClassVar[tuple[str, ...]] = ("masked_lm", "causal_lm")
    beside: ClassVar[tuple[dict[str, Any], ...]] = (
        {"use": "examples", "fields": ["text", "label"], "length": 24},
        {"use": "classifier", "classes": ["chat", "code", "prose"], "dropout": 0.0})

    def init(self, model: nn.Module, ctx: Context) -> State:
        head_of(model)
        return {}

    def count(self, batch: Batch) -> float:
        if "labels" not in batch:
            raise UserError("label: the batch has no labels: take { use = \"examples\", fields = [\"text\", "
                            "\"label\"] } as the data method.")
        return float(len(batch["labels"]))

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        right = wanted(model, batch["labels"], open_corpus(ctx.path("data")))
        logits = class_logits(model, batch)
        ctx.note("train_accuracy", (logits.detach().argmax(1) == right).float().mean(), weight=len(right))
        return F.cross_entropy(logits, right, reduction="none")
