"""What sources of documents share: a row of the table (see ``columns.py``), and tables made of readers."""
from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from daft import DataFrame, Schema
from daft.io.source import DataSource, DataSourceTask
from daft.recordbatch import RecordBatch

from trainwright.corpus.columns import ARROW, CHOSEN, PROMPT, REJECTED, SCHEMA, TEXT, Keep, stored
from trainwright.corpus.documents import empty, failures, union
from trainwright.corpus.editing import view
from trainwright.corpus.streaming import paced

__all__ = ["document", "empty", "table", "union", "union_of"]

Row = dict[str, Any]
Reader = Callable[[], Iterable[Row]]
"""Yields rows of the standard columns. A cluster pickles it: a ``partial`` of a module's function."""

BATCH_ROWS, BATCH_BYTES = 1024, 8 << 20


def document(*, id: str, domain: str, source: str, text: str = "", metadata: Mapping[str, Any] | None = None,
             messages: Sequence[Mapping[str, Any]] | None = None, origin: str | None = None,
             columns: Mapping[str, Any] | None = None, root: Path = Path(), keep: Keep | None = None) -> Row:
    """One row of the table. Halves of surrogate pairs, which no file can hold, become U+FFFD.

    Args:
        text: what is learned of a plain document. That of a conversation, or of a pair, is made of what they
            say.
        origin: of a document that is written from another one, the id of that one.
        columns: values of typed columns (``prompt``, ``chosen``, ``rejected``, ``label``, ``number``,
            ``image``, ``audio``).
        root: the folder from which paths of media are read.
        keep: where bytes of media go (``media.keeper(ctx)``).

    Raises:
        ValueError: a value that its column cannot hold, a pair of which one part is text and another
            messages.
    """
    row: Row = dict.fromkeys(SCHEMA)
    row |= {"id": id, TEXT: text, "domain": domain, "source": source, "origin": origin,
            "metadata": json.dumps(metadata or {}, ensure_ascii=False, default=str),
            "messages": None if messages is None else json.dumps(messages, ensure_ascii=False)}
    row |= {name: stored(name, value, root, keep) for name, value in (columns or {}).items()}
    _check_pair(row)
    shown = view(row["messages"], row[PROMPT], row[CHOSEN])
    row[TEXT] = row[TEXT] if shown is None else shown
    return {name: _whole(value) if isinstance(value, str) else value for name, value in row.items()}


def _check_pair(row: Row) -> None:
    parts = [row[name] for name in (PROMPT, CHOSEN, REJECTED)]
    if parts == [None] * 3:
        return
    if row[CHOSEN] is None or row[REJECTED] is None:
        raise ValueError("a preference pair has chosen and rejected, not one of them alone")
    if len({part.startswith('"') for part in parts if part is not None}) > 1:
        raise ValueError("prompt, chosen and rejected of a pair are all text, or all lists of messages")


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
            made = pa.RecordBatch.from_pylist(batch, ARROW)
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
