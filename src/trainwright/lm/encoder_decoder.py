"""The same batches for models of an encoder and a decoder (T5, BART): each document is read in two parts.

The encoder reads a document up to and with the first position that has a target (its input, of denoised text;
the first token, of plain text), in both directions; the decoder begins with its start token there, and reads
the rest. So a target is seen neither by the encoder nor by the decoder before its turn, and documents of a
row, each a row of its own here, are apart.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainwright.core.method import UNTRAINED, Batch


class Halves(NamedTuple):
    """Documents as an encoder and a decoder read them: [documents, longest]; ``place`` of each
    target in the flat batch."""

    read: Tensor
    there: Tensor
    """Which positions of ``read`` are no padding (1)."""
    begun: Tensor
    wanted: Tensor
    place: Tensor


def has_encoder(model: nn.Module) -> bool:
    """Whether a transformers model is one of encoder and decoder."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def halves(batch: Batch, start: int) -> Halves:
    """The documents of a batch that have a target. ``start``: the decoder's first token."""
    ids, targets = batch["input_ids"].flatten(), batch["targets"].flatten()
    # rows begin with a document
    number = (batch["position_ids"].flatten() == 0).cumsum(0) - 1
    at, trained = torch.arange(len(ids), device=ids.device), targets != UNTRAINED
    many = int(number[-1]) + 1
    first = at.new_full((many,), len(ids)).scatter_reduce(0, number[trained], at[trained], "amin")
    last = at.new_full((many,), -1).scatter_reduce(0, number[trained], at[trained], "amax")
    # documents without a target go
    row = (last >= 0).cumsum(0) - 1
    before, behind = at <= first[number], (at >= first[number]) & (at <= last[number])
    before &= last[number] >= 0
    begin = at.new_full((many,), len(ids)).scatter_reduce(0, number, at, "amin")
    rows = int(row[-1]) + 1 if many else 0

    def laid(which: Tensor, origin: Tensor, values: Tensor, empty: int) -> Tensor:
        column = (at - origin[number])[which]
        out = values.new_full((rows, int(column.max()) + 1 if len(column) else 0), empty)
        out[row[number[which]], column] = values[which]
        return out

    given = torch.where(at == first[number], start, ids)
    return Halves(
        laid(before, begin, ids, 0),
        laid(before, begin, torch.ones_like(ids), 0),
        laid(behind, first, given, 0),
        laid(behind, first, targets, UNTRAINED),
        laid(behind, first, at, -1),
    )


def encoded_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy [R, L], float32, of each position's target; 0 where it has none."""
    losses = torch.zeros(batch["targets"].numel(), device=batch["targets"].device)
    part = halves(batch, start_token(model))
    if len(part.read):
        logits = model(
            input_ids=part.read, attention_mask=part.there, decoder_input_ids=part.begun, use_cache=False
        ).logits
        found = F.cross_entropy(
            logits.float().flatten(0, 1), part.wanted.flatten(), ignore_index=UNTRAINED, reduction="none"
        )
        there = part.place.flatten() >= 0
        losses = losses.index_copy(0, part.place.flatten()[there], found[there])
    return losses.view_as(batch["targets"])


def start_token(model: nn.Module) -> int:
    """What the decoder begins with: as the config says, or else padding, or the token 0."""
    told = (getattr(model.config, n, None) for n in ("decoder_start_token_id", "pad_token_id"))
    return next((int(t) for t in told if t is not None), 0)
