"""Documents through a language model: the loss of each, or the mean of its hidden states.

Documents are read in blocks, and what came out of a block is kept in the store's cache under a hash of the
model and of its documents: an interrupted stage goes on with the next block, and another stage that has the
same read need not. Within a block, pieces of about one length share a batch, so that little is padding;
padding stands behind a document, where a causal model does not see it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.files import room
from trainwright.core.method import UNTRAINED
from trainwright.corpus.chat import Chat
from trainwright.corpus.tokens import Document, Encoder
from trainwright.lm.losses import body_states, evaluating, most_positions, padded, positions, token_losses
from trainwright.storage.caches import SUMMED, sweep, vouch, vouched
from trainwright.storage.store import key_of, stamp

if TYPE_CHECKING:
    from daft import DataFrame

BLOCK = 1024
"""Documents of a block."""


class Piece(NamedTuple):
    """A stretch of a document that is read at once."""

    document: int
    ids: NDArray[np.int64]
    targets: NDArray[np.int64]


@dataclass(frozen=True)
class Reader:
    """A model with its tokenizer, ready to read documents."""

    model: nn.Module
    encoder: Encoder
    length: int
    batch_tokens: int
    ctx: Context
    key: str

    @classmethod
    def of(
        cls, folder: Path, ctx: Context, method: str, length: int = 512, batch_tokens: int = 8192
    ) -> Reader:
        """The model in ``folder``.

        Args:
            length: tokens that it sees at once; fewer where it has fewer positions. A longer document is read
                in parts.

        Raises:
            UserError: a checkpoint without a tokenizer.
        """
        tokenizer = families.load_tokenizer(folder, method)
        if tokenizer is None:
            raise UserError(
                f"{method}: the model in {folder} has no tokenizer, so that it cannot read documents."
            )
        model = families.load(folder, method).to(ctx.device).eval().requires_grad_(False)
        talk = (
            Chat(tokenizer, None)
            if tokenizer.chat_template and "generation" in tokenizer.chat_template
            else None
        )
        seen = min(length, most_positions(model) or length)
        return cls(model, Encoder(tokenizer, talk), seen, batch_tokens, ctx, key_of(stamp(folder), seen))

    def encode(self, block: Sequence[Document]) -> list[Piece]:
        """Pieces of at most ``length`` tokens, the shortest first; a document of one
        token and less has none."""
        plain = [d if self.encoder.chat else d._replace(messages=None) for d in block]
        pieces = []
        for number, (ids, mask, _) in enumerate(self.encoder.encode(plain)):
            tokens = ids.astype(np.int64)
            targets = tokens if mask is None else np.where(mask, tokens, UNTRAINED)
            pieces += [
                Piece(
                    number,
                    tokens[at : at + self.length][: len(tokens) - 1 - at],
                    targets[at + 1 : at + 1 + self.length],
                )
                for at in range(0, len(tokens) - 1, self.length)
            ]
        return sorted(pieces, key=lambda p: len(p.ids))

    def batches(self, pieces: Sequence[Piece]) -> Iterator[tuple[NDArray[np.int64], dict[str, Any]]]:
        """For each batch the numbers of its documents, and the batch."""
        at = 0
        while at < len(pieces):
            many = 1
            while at + many < len(pieces) and (many + 1) * len(pieces[at + many].ids) <= self.batch_tokens:
                many += 1
            part = pieces[at:at + many]
            yield np.array([p.document for p in part]), padded([(p.ids, p.targets) for p in part], self.ctx)
            at += many


def losses(documents: DataFrame, reader: Reader) -> pa.Table:
    """``id``, ``loss`` (mean nats a token, null where there is none to predict) and ``tokens``
    (predicted) of each document.

    In a conversation only what the assistant says is predicted, where the model's chat template marks it.
    """
    return read_blocks(documents, reader, "losses", partial(_losses, reader))


def embeddings(documents: DataFrame, reader: Reader) -> pa.Table:
    """``id`` and ``embedding`` (float32, the mean over a document's tokens of the last hidden states;
    zeros for an empty one)."""
    return read_blocks(documents, reader, "embeddings", partial(_embeddings, reader))


def _losses(reader: Reader, block: Sequence[Document]) -> dict[str, Any]:
    nats, tokens = np.zeros(len(block)), np.zeros(len(block), dtype=np.int64)
    for numbers, batch in reader.batches(reader.encode(block)):
        with torch.no_grad(), evaluating(reader.model):
            found = token_losses(reader.model, batch, reader.ctx).double().sum(1).cpu().numpy()
        np.add.at(nats, numbers, found)
        np.add.at(tokens, numbers, (batch["targets"] != UNTRAINED).sum(1).cpu().numpy())
    return {
        "loss": pa.array(
            np.divide(nats, tokens, where=tokens > 0, out=np.zeros_like(nats)), mask=tokens == 0
        ),
        "tokens": tokens,
    }


def _embeddings(reader: Reader, block: Sequence[Document]) -> dict[str, Any]:
    sums: Tensor | None = None
    tokens = torch.zeros(len(block), dtype=torch.float64)
    for numbers, batch in reader.batches(reader.encode([d._replace(messages=None) for d in block])):
        with torch.no_grad(), evaluating(reader.model):
            states = body_states(reader.model, batch["input_ids"], positions(reader.model, batch))
        inside = (batch["targets"] != UNTRAINED).unsqueeze(-1)
        found = (states.float() * inside).double().sum(1).cpu()
        sums = torch.zeros(len(block), found.shape[1], dtype=torch.float64) if sums is None else sums
        sums.index_add_(0, torch.from_numpy(numbers), found)
        tokens.index_add_(0, torch.from_numpy(numbers), inside.sum((1, 2)).double().cpu())
    width = reader.model.config.get_text_config().hidden_size if sums is None else sums.shape[1]  # type: ignore[operator, union-attr]
    mean = (
        torch.zeros(len(block), width) if sums is None else (sums / tokens.clamp(min=1).unsqueeze(1)).float()
    )
    flat = pa.array(mean.numpy().ravel(), pa.float32())
    return {"embedding": pa.FixedSizeListArray.from_arrays(flat, width).cast(pa.list_(pa.float32()))}


def read_blocks(documents: DataFrame, reader: Reader, name: str,
                work: Callable[[Sequence[Document]], dict[str, Any]]) -> pa.Table:
    """What ``work`` makes of each block of documents, with their ids; from the cache
    where it was made before."""
    kept = reader.ctx.cache or reader.ctx.folder
    assert kept is not None
    kept.mkdir(parents=True, exist_ok=True)
    folder = room(kept / f"{name}-{reader.key}")
    sweep(folder)
    parts = []
    for block in _blocks(documents):
        digest = hashlib.sha256(repr(block).encode()).hexdigest()[:24]
        file = folder / f"{digest}.parquet"
        if not vouched(file.with_suffix(SUMMED)):
            made = pa.table({"id": pa.array([d.id for d in block], pa.large_string())} | work(block))
            new = file.with_suffix(f".{os.getpid()}")
            pq.write_table(made, new)
            os.replace(new, file)
            vouch(file)
        parts.append(pq.read_table(file))
    if not parts:
        raise UserError("there is no document to read with the model.")
    return pa.concat_tables(parts).combine_chunks()


def _blocks(documents: DataFrame) -> Iterator[list[Document]]:
    from trainwright.corpus.documents import stream
    held: list[Document] = []
    for batch in stream(documents.select("id", "text", "messages")):
        for row in batch.to_pylist():
            held.append(Document(row["id"], row["text"] or "", row["messages"]))
            if len(held) == BLOCK:
                yield held
                held = []
    if held:
        yield held
