"""Classification: cross-entropy of each document's label.

    loss = - sum over rows r of log p(label_r | document_r)          the loop divides by the number of labels

p is the softmax over the logits of ``classifier``. It reads ``input_ids``, ``attention_mask`` (int64 [R, L]),
``label`` (int64 [R]; -100: none) and ``classes``, which ``examples`` makes. Logs ``train_accuracy``.

Do not use it for texts that a model is to write: those are ``supervised``.

Errors: a model without a classifier; a batch without labels; a label that the classifier does not know.
"""
from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch, Objective, State
from trainwright.lm.classes import class_logits, head_of, wanted


class Label(Objective):
    """Cross-entropy of the class, one number a document; 0 where it has no label."""

    families: ClassVar[tuple[str, ...]] = ("masked_lm", "causal_lm")

    def init(self, model: nn.Module, ctx: Context) -> State:
        head_of(model)
        return {}

    def count(self, batch: Batch) -> float:
        if "label" not in batch:
            raise UserError("label: the batch has no labels: its documents need a column label, and { use = "
                            "\"examples\" } reads it.")
        return float((batch["label"] != UNTRAINED).sum())

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        right, logits = wanted(model, batch), class_logits(model, batch)
        hit = (logits.detach().argmax(1) == right).float().sum()
        if units := self.count(batch):
            ctx.note("train_accuracy", hit / units, weight=units)
        return F.cross_entropy(logits, right, ignore_index=UNTRAINED, reduction="none")
