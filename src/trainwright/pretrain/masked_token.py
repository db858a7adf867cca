"""Masked language modeling: cross-entropy of the tokens that are hidden, given the rest of the row.

"BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding" (arXiv 1810.04805).

    loss = - sum over hidden positions t of log p(x[t] | row with gaps)      the loop divides by their number

It reads ``input_ids`` and ``attention_mask`` (int64 [R, L]) and ``targets`` ([R, L]: the hidden token itself,
-100 where nothing is asked for), which ``mask_words`` makes; give each document a row of its own (``pack``
with ``isolate = "rows"``), since the model reads the whole row. Logs ``train_loss/DOMAIN``.

Do not use it for a model that writes: it learns to fill gaps, not to go on.

Errors: a batch without ``attention_mask``, whose targets are those of another objective.
"""
from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch, Objective, State
from trainwright.families import token_logits
from trainwright.lm.losses import note_domains, tokens_by_domain, trained_tokens


class MaskedToken(Objective):
    """Cross-entropy of hidden tokens, one number a position; 0 where nothing is hidden."""

    families: ClassVar[tuple[str, ...]] = ("masked_lm",)
    beside: ClassVar[tuple[dict[str, Any], ...]] = (
        {"use": "pack", "length": 32, "isolate": "rows"}, {"use": "mask_words", "mask": "<|endoftext|>"})

    def count(self, batch: Batch) -> float:
        return trained_tokens(batch)

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        if "attention_mask" not in batch:
            raise UserError("masked_token: the batch has no gaps: add { use = \"mask_words\" } behind the "
                            "data method.")
        counts = tokens_by_domain(batch) if "domain" in batch else []
        targets = batch["targets"]
        logits = token_logits(model, batch["input_ids"], None, batch["attention_mask"]).float()
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=UNTRAINED,
                                 reduction="none").view_as(targets)
        if counts:
            note_domains(losses, batch, counts, ctx)
        return losses
