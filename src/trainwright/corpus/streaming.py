"""What keeps a table of documents out of memory where the engine (Daft 0.7.26) would not.

It reads a whole table ahead of whoever takes the rows: here readers wait for him. Its joins gather the whole
table, and its ``is_in`` goes through all ids for each batch: here rows are found by id in a set.
"""
from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from daft import DataFrame

A = TypeVar("A", pa.RecordBatch, pa.Array)
AHEAD = 128 << 20
"""Bytes that the readers of this process may be ahead of the takers."""
IDLE, PATIENCE = 0.1, 60.0
"""Seconds after which a taker counts as waiting, and after which a reader goes on anyway (a table may be left
half taken). Shorter ones would take a process for idle whose turn on a busy machine has not come."""
BUSY = 0.1
"""Share of a core above which this process is at work, on rows that were read before."""

_takers: list[list[float]] = []
"""Since when the taker of each running table has been waiting; infinity while he is at work on rows. Who
waited last is last."""
_ahead, _row = [0.0], [0.0]
"""Bytes that were read and, as far as is known, not taken; of a row, the bytes that were read for it
lately."""


def taken(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """``batches``; it is known what was taken, and when the taker is at work on it."""
    since = [time.monotonic()]
    _takers.append(since)
    try:
        for batch in batches:
            since[0] = math.inf
            _ahead[0] = max(0.0, _ahead[0] - len(batch) * _row[0])
            yield batch
            since[0] = time.monotonic()
            _takers[:] = [one for one in _takers if one is not since] + [since]
    finally:
        _takers[:] = [one for one in _takers if one is not since]


async def paced(batch: pa.RecordBatch) -> None:
    """What a reader awaits behind each batch that it gave: that takers have what was read, or wait, since a
    filter kept nothing of it. On a cluster, where nobody takes rows in the reader's own process, it goes on
    at once."""
    _ahead[0] += batch.nbytes
    _row[0] = batch.nbytes / max(1, len(batch))
    began, used = time.monotonic(), time.process_time()
    until = began + PATIENCE
    while _takers and _ahead[0] > AHEAD:
        await asyncio.sleep(IDLE / 10)  # the taker may run on the same loop: what is there for him goes first
        now = time.monotonic()
        if now - began < IDLE or not _takers:
            continue
        busy, waits = time.process_time() - used > BUSY * (now - began), now - _takers[-1][0]
        if busy and waits == -math.inf:                 # at work, be it for hours: a model may read the rows
            until = now + PATIENCE
        elif now > until or (not busy and waits >= IDLE):
            _ahead[0] = 0.0
        began, used = now, time.process_time()


def owned(part: A) -> A:
    """A copy of columns of a batch, or of one, to be kept when the batch is gone: they hold all of the batch,
    texts included."""
    return part.take(pa.array(np.arange(len(part))))


def among(table: DataFrame, ids: Iterable[str]) -> Any:
    """The condition that a row's ``id`` is one of these."""
    import daft
    known = frozenset(ids)

    @daft.func.batch(return_dtype=daft.DataType.bool())  # type: ignore[untyped-decorator]
    def found(column: Any) -> Any:
        return pa.array([one in known for one in column.to_arrow().to_pylist()], pa.bool_())

    return found(table["id"])


def looked_up(table: DataFrame, told: pa.Table) -> dict[str, Any]:
    """The columns of ``told`` by name, but for its ``id``, for the rows of ``table``: null where ``told``
    does not have an id."""
    import daft
    places = {one: place for place, one in enumerate(told["id"].to_pylist())}

    def column(values: pa.ChunkedArray) -> Any:
        whole = values.combine_chunks()

        kind = daft.DataType.from_arrow_type(whole.type)

        @daft.func.batch(return_dtype=kind)  # type: ignore[untyped-decorator]
        def found(ids: Any) -> Any:
            return whole.take(pa.array([places.get(one) for one in ids.to_arrow().to_pylist()], pa.int64()))

        return found(table["id"])

    return {name: column(told[name]) for name in told.column_names if name != "id"}
