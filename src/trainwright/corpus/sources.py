"""What curating methods share: the standard table (see ``corpus/documents.py``), its union, and tables made of readers."""
from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from trainwright.corpus.documents import ARROW, SCHEMA, empty, failures, union  # sets up Daft, so it comes first
from trainwright.corpus.streaming import paced

__all__ = ["SCHEMA", "document", "empty", "table", "union", "union_of"]

# isort: split
from daft import DataFrame, Schema
from daft.io.source import DataSource, DataSourceTask
from daft.recordbatch import RecordBatch

Row = dict[str, str | None]
Reader = Callable[[], Iterable[Row]]
"""Yields rows of the standard columns. A cluster pickles it: a ``functools.partial`` of a function of a module."""

BATCH_ROWS, BATCH_BYTES = 1024, 8 << 20


def document(*, id: str, text: str, domain: str, source: str, metadata: Mapping[str, Any] | None = None,
             messages: Sequence[Mapping[str, Any]] | None = None) -> Row:
    """One row of the table. Halves of surrogate pairs, which no file can hold, become ``\N{REPLACEMENT CHARACTER}``."""
    row: Row = {"id": id, "text": text, "domain": domain, "source": source,
                "metadata": json.dumps(metadata or {}, ensure_ascii=False, default=str),
                "messages": None if messages is None else json.dumps(messages, ensure_ascii=False)}
    return {name: None if value is None else _whole(value) for name, value in row.items()}


def _whole(text: str) -> str:
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def union_of(tables: Sequence[DataFrame]) -> DataFrame:
    """The rows of all of them, in order."""
    whole = tables[0]
    for one in tables[1:]:
        whole = union(whole, one)
    return whole


def table(name: str, readers: Sequence[Reader]) -> DataFrame:
    """A lazy table of what the readers yield, in their order; each is one task, read a batch at a time."""
    return _Source(name, readers).read()


class _Source(DataSource):
    def __init__(self, name: str, readers: Sequence[Reader]) -> None:
        self._name, self._readers = name, readers

    @property
    def name(self) -> str:
        return self._name

    @property
    def schema(self) -> Schema:
        return Schema.from_pyarrow_schema(ARROW)

    async def get_tasks(self, pushdowns: Any) -> AsyncIterator[DataSourceTask]:
        for reader in self._readers:
            yield _Task(reader)


class _Task(DataSourceTask):
    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    @property
    def schema(self) -> Schema:
        return Schema.from_pyarrow_schema(ARROW)

    async def read(self) -> AsyncIterator[RecordBatch]:
        rows = _batches(iter(self._reader()))
        while batch := self._next(rows):
            columns = {name: pa.array([row[name] for row in batch], pa.large_string()) for name in SCHEMA}
            made = pa.record_batch(columns, ARROW)
            yield RecordBatch.from_arrow_record_batches([made], ARROW)
            await paced(made)

    def _next(self, batches: Iterator[list[Row]]) -> list[Row] | None:
        try:
            return next(batches, None)
        except Exception as error:
            failures.append(error)
            raise


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while batch := list(islice(rows, 1)):
        size = 0
        while len(batch) < BATCH_ROWS and (size := size + len(batch[-1]["text"] or "")) < BATCH_BYTES:
            more = list(islice(rows, 1))
            if not more:
                break
            batch += more
        yield batch
