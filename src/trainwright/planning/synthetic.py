"""Synthetic language batches, for what must be measured before there is a corpus."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from trainwright.core.context import Context
from trainwright.core.method import UNTRAINED, Batch, Data, State


def synthetic(rows: int, tokens: int, vocabulary: int, ctx: Context) -> Batch:
    """A batch of the right shape, one document a row."""
    ids = torch.randint(vocabulary, (rows, tokens), generator=ctx.rng("plan", at=0))
    place = torch.arange(tokens).expand(rows, tokens).contiguous()
    zeros = torch.zeros_like(ids)
    batch = {"input_ids": ids, "targets": ids.roll(-1, 1), "position_ids": place, "document": zeros,
             "domain": zeros, "attention_mask": torch.ones_like(ids)}
    return {n: t.to(ctx.device) for n, t in batch.items()} | {"domains": ("any",), "packed": False}


class Synthetic(Data):
    """Stands in for the data of a corpus: rows of packed documents, in which the end of each has no next
    token to learn."""

    tokens: int
    """Positions in a row."""
    vocabulary: int
    """Tokens to draw from."""
    document: int = 0
    """Tokens of a document; 0: half a row."""

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        batch: dict[str, Any] = synthetic(ctx.batch_rows, self.tokens, self.vocabulary, ctx)
        size = min(self.document, self.tokens) or max(1, -(-self.tokens // 2))
        place = batch["position_ids"]
        batch["document"], batch["position_ids"] = place // size, place % size
        batch["targets"][:, size - 1 :: size] = batch["targets"][:, -1] = UNTRAINED
        return batch | {"packed": size < self.tokens}

    def row_tokens(self) -> int:
        return self.tokens
