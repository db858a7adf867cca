"""Asks a teacher once for the likeliest next tokens of documents, and keeps its answers beside them.

Of each position of a document that is learned, the column ``teacher`` holds the ``top_k`` likeliest tokens
with their log-probabilities, int32 [N, K] and float32 [N, K] as base64 in JSON: 11 bytes an entry.
``distill`` reads them with ``teacher = "column"`` from the batch of ``{ use = "examples", fields = ["text",
"teacher"] }``,

    teacher_ids int64, teacher_logp float32 [R, L, K]           0 where nothing is learned

and then no second model is held in memory, nor asked again in each epoch. As any artifact they are made anew
where the documents, the tokenizer, the chat template, the model or ``length`` change; a batch whose tokens
are not those that the teacher read is refused. Dropout is off. Pairs, and documents that are held out, have
null.

The documents are those of the earlier corpus ``from.data``, whose tokenizer and template both stages use;
``from.model`` is the teacher.

Not for one epoch with a small teacher: ``distill`` then asks it on the way for the same price.

Errors: no earlier corpus, no model; a model with another tokenizer than the corpus; no document to read; as
many tokens as the vocabulary has.
"""
from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, ClassVar

from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Curate
from trainwright.core.settings import Count, Row
from trainwright.core.stage import Role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daft import DataFrame
    from torch import nn

    from trainwright.core.context import Context


class TeacherLogits(Curate):
    """Adds the column ``teacher``: the likeliest next tokens of each document under ``from.model``."""

    top_k: Count = 16
    """Tokens that are kept of each position."""
    length: Row = 512
    """Tokens of a document at most: that of ``examples`` in the stage that trains."""
    batch_tokens: Count = 8192
    """Tokens of a forward pass, roughly."""
    roles: ClassVar[dict[str, Role]] = {"model": Role(needed=True)}
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "documents are read sorted by id; what a model made of them is not made "
        "again for each look"
    }
    example: ClassVar[dict[str, Any]] = {"top_k": 4, "length": 32, "batch_tokens": 512}

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.lm.model_columns import Asking, column_of
        whole = Asking(self.name, "teacher", ("text",), self.length, self.batch_tokens)
        return column_of(documents, ctx, whole, documents["chosen"].is_null(), self._told)

    def _told(self, model: nn.Module, batch: dict[str, Any], ctx: Context) -> Iterator[str]:
        """What the column holds of each document."""
        import torch

        from trainwright.corpus.inputs import fingerprints
        from trainwright.lm.distillation import trained_logits
        learned = batch["targets"] != UNTRAINED
        with torch.no_grad():
            logp = trained_logits(model, batch).log_softmax(-1)
        if logp.shape[1] <= self.top_k:
            raise UserError(f"{self.name}: top_k = {self.top_k} of a vocabulary of {logp.shape[1]} tokens "
                            "leaves none: take fewer.")
        best = logp.topk(self.top_k)
        ids = best.indices.int().cpu().split(learned.sum(1).tolist())
        values = best.values.float().cpu().split(learned.sum(1).tolist())
        for one, value, of in zip(ids, values, fingerprints(batch, ("input_ids", "targets")), strict=True):
            yield json.dumps({"ids": _packed(one), "logp": _packed(value), "k": self.top_k, "of": of})


def _packed(numbers: Any) -> str:
    return base64.b64encode(numbers.numpy().tobytes()).decode()
