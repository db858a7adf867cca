"""Passes over a table that may exceed memory: its texts, a few at a time, and the table without some rows."""
from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from daft import DataFrame

AT_ONCE = 256
"""Documents whose texts are Python's at one time: the engine's own batches may hold a hundred thousand."""


def texts(rows: DataFrame, *more: str) -> Iterator[pa.RecordBatch]:
    """``id``, ``text`` and ``more`` of a few documents at a time; no text is null."""
    from trainwright.corpus.documents import stream
    for batch in stream(rows.select("id", rows["text"].fill_null(""), *more)):
        for at in range(0, len(batch), AT_ONCE):
            yield batch.slice(at, AT_ONCE)


def without(rows: DataFrame, ids: pa.Array | pa.ChunkedArray) -> DataFrame:
    """The rows of all other documents."""
    from trainwright.corpus.streaming import among
    return rows.where(~among(rows, ids.to_pylist())) if len(ids) else rows
