"""The table of documents: its columns, and Daft, the engine that runs it without a sound and without telling
anybody."""
from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import daft
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from daft.exceptions import DaftCoreException
from daft.io.source import DataSource, DataSourceTask
from daft.recordbatch import RecordBatch
from daft.runners import get_or_infer_runner_type
from numpy.typing import NDArray

from trainwright.core.errors import UserError
from trainwright.corpus.columns import (
    ARROW,
    CHOSEN,
    DOMAIN,
    ID,
    LABEL,
    MEDIA,
    MESSAGES,
    ORIGIN,
    SCHEMA,
    SOURCE,
    TEXT,
    kind_of,
)
from trainwright.corpus.streaming import among, paced, taken

if TYPE_CHECKING:
    from daft import DataFrame

FILE_BYTES = 256 << 20
"""Bytes of a table in one Parquet file, about; a row group holds a sixteenth of that at most."""
GROUP_ROWS, BATCH_ROWS = 4096, 1024

failures: list[Exception] = []
"""What readers raised in the running table. The engine may swallow it, or hand it on as text only."""
_in_files: WeakSet[DataFrame] = WeakSet()

# One file after the other: several at a time are read no faster, and wait for one another in memory. Few rows
# at a time: the engine's own 131,072 are half a gigabyte of text, of which each step of an expression makes
# another.
daft.set_execution_config(scantask_max_parallel=1, default_morsel_size=GROUP_ROWS)
# A failure is raised and told once, by us; the engine's own line about it would come before ours.
logging.getLogger("daft_local_execution").setLevel(logging.CRITICAL)


def start(engine: str) -> None:
    """Run tables on this machine (``native``) or on a Ray cluster (``ray``), which from then on runs all of
    this process."""
    if engine != "ray":
        return
    if importlib.util.find_spec("ray") is None:
        raise UserError('engine = "ray" needs Ray: pip install "trainwright[ray]".')
    if get_or_infer_runner_type() != "ray":
        try:
            daft.set_runner_ray()
        except DaftCoreException:
            raise UserError('engine = "ray": this process has already run a table on engine = "native", and '
                            'cannot change; say "ray" of the first corpus too, or run the recipe again, '
                            'which goes on here.') from None


def empty() -> DataFrame:
    """A table with the standard columns and no rows: what the first method of a corpus is given."""
    return daft.from_arrow(ARROW.empty_table())


def standard(table: DataFrame, method: str) -> DataFrame:
    """``table`` with its standard columns as they are stored. Raises a UserError that names the method which
    lost one."""
    lost = [name for name in SCHEMA if name not in table.column_names]
    if lost:
        raise UserError(f"the method {method!r} returned a table without {', '.join(lost)}; documents have "
                        f"{', '.join(SCHEMA)}.")
    return table.with_columns({field.name: table[field.name].cast(daft.DataType.from_arrow_type(field.type))
                               for field in ARROW})


def union(a: DataFrame, b: DataFrame) -> DataFrame:
    """The rows of ``a``, then those of ``b``; a column that one of them lacks is null there.

    Make sources of documents with ``corpus/sources.py: table``, whose failures are kept aside and raised.
    With two sources in one table, Daft 0.7.26 may lose a failure of its own readers (``daft.read_parquet``
    …): one that stops early then looks whole.
    """
    return a.union_all_by_name(b)


def stream(table: DataFrame) -> Iterator[Any]:
    """Run the table and yield it as Arrow record batches, a few at a time; it is never whole in memory.

    Raises:
        UserError: one that a reader raised.
    """
    failures.clear()
    try:
        yield from taken(table.to_arrow_iter())
    except DaftCoreException as error:
        # from another machine comes the text of an error only
        told = re.search(r"\bUserError: (.+)", str(error))
        if told is None and not failures:
            raise
        raise failures[0] if failures else UserError(told[1].strip() if told else "") from None
    if failures:
        raise failures[0]


def parquet(files: Sequence[Path]) -> DataFrame:
    """A lazy table of Parquet files of one schema, in order. Unlike the engine's own reader it takes a name
    as it is written (which may have brackets), and a failure of it is not lost."""
    return in_files(_Parquet(files).read())


def in_files(table: DataFrame) -> DataFrame:
    """``table``, of which is known from now on that its rows only need to be read (see ``settled`` in
    ``corpus/selecting.py``)."""
    _in_files.add(table)
    return table


def lies_in_files(table: DataFrame) -> bool:
    """Whether a second look at ``table`` costs no more than to read it again."""
    return table in _in_files


class _Parquet(DataSource):  # type: ignore[misc]
    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files

    @property
    def name(self) -> str:
        return "parquet"

    @property
    def schema(self) -> daft.Schema:
        return daft.Schema.from_pyarrow_schema(pq.read_schema(self._files[0]))

    async def get_tasks(self, pushdowns: Any) -> AsyncIterator[DataSourceTask]:
        names = self.schema.column_names()
        wanted = {*(pushdowns.columns or names), *pushdowns.filter_required_column_names()}
        for file in self._files:
            yield _ParquetTask(file, [name for name in names if name in wanted])


class _ParquetTask(DataSourceTask):  # type: ignore[misc]
    def __init__(self, file: Path, columns: list[str]) -> None:
        self._file, self._columns = file, columns

    @property
    def schema(self) -> daft.Schema:
        schema = pq.read_schema(self._file)
        return daft.Schema.from_pyarrow_schema(pa.schema([schema.field(name) for name in self._columns]))

    async def read(self) -> AsyncIterator[RecordBatch]:
        try:
            with pq.ParquetFile(self._file, pre_buffer=False) as opened:
                for batch in opened.iter_batches(batch_size=BATCH_ROWS, columns=self._columns):
                    yield RecordBatch.from_arrow_record_batches([batch], batch.schema)
                    await paced(batch)
        except Exception as error:
            failures.append(error)
            raise


class Earlier:
    """The documents of a corpus that was built before: those for training, on which methods work, and those
    kept back, which go along untouched."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted((folder / "documents").glob("*.parquet"))
        if not self.files:
            raise UserError(f"{folder} is no corpus: it has no documents.")
        index = pq.read_table(folder / "tokens" / "index.parquet", columns=["id", "split"])
        kept = index.filter(pc.not_equal(index["split"], "train"))
        self.split: dict[str, str] = dict(zip(kept["id"].to_pylist(), kept["split"].to_pylist(), strict=True))

    def training(self) -> DataFrame:
        """The documents for training, with every column that was written."""
        table = parquet(self.files)
        return in_files(table.where(~among(table, self.split))) if self.split else table

    def held(self, schema: pa.Schema) -> Iterator[pa.Table]:
        """The documents kept back, with the columns of ``schema``; those that no method wrote for them are
        null."""
        for file in self.files:
            with pq.ParquetFile(file, pre_buffer=False) as parquet:
                for batch in parquet.iter_batches(batch_size=256):
                    rows = pa.Table.from_batches([batch])
                    mine = [one in self.split for one in rows[ID].to_pylist()]
                    rows = rows.filter(pa.array(mine, pa.bool_()))
                    columns = [rows[f.name].cast(f.type) if f.name in rows.column_names
                               else pa.nulls(len(rows), f.type)
                               for f in schema]
                    yield pa.table(columns, schema=schema)


@dataclass
class Table:
    """What is known of the documents once they are written: arrays in the order of the files."""

    files: list[Path] = field(default_factory=list)
    ids: NDArray[np.object_] = field(default_factory=lambda: np.empty(0, object))
    domains: NDArray[np.object_] = field(default_factory=lambda: np.empty(0, object))
    splits: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    origins: dict[str, str] = field(default_factory=dict)
    """Of documents that are written from another one, the id of that one, as the method that wrote them says
    it."""
    columns: dict[str, str] = field(default_factory=dict)
    """The kind of each column in which some document has a value."""
    labels: set[str] = field(default_factory=set)
    media: set[str] = field(default_factory=set)
    """References to images and sounds."""
    media_bytes: int = 0
    empty: int = 0
    conversations: int = 0
    bytes: int = 0
    curated: list[dict[str, Any]] = field(default_factory=list)
    """Documents in and out of each method, in recipe order (see ``provenance.py``)."""
    kept: dict[str, Any] = field(default_factory=dict)
    """All documents and those that were kept, by domain and by length."""


class Writer:
    """Parquet files of about one size, in the order in which rows come; blank documents are left out and
    counted."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.held: list[pa.Table] = []
        self.file: pq.ParquetWriter | None = None
        self.written = 0
        self.ids: list[pa.ChunkedArray] = []
        self.domains: list[pa.ChunkedArray] = []
        self.found = Table()
        self.rows = 0
        self.blank: list[str] = []
        """Ids of the documents that were left out."""
        self.schema = ARROW

    def add(self, rows: pa.Table) -> None:
        blank = _blank(rows)
        self.blank += rows.filter(blank)[ID].to_pylist()
        self.found.empty = len(self.blank)
        rows = rows.filter(pc.invert(blank))
        for name in (ID, DOMAIN):
            nameless = rows.filter(pc.equal(pc.fill_null(rows[name], ""), ""))
            if len(nameless):
                raise UserError(f"a document from {nameless[SOURCE][0]} has no {name}.")
        self.found.bytes += pc.sum(pc.binary_length(rows[TEXT])).as_py() or 0
        self.found.conversations += len(rows) - rows[MESSAGES].null_count
        self.found.conversations += pc.sum(_pairs_of_messages(rows)).as_py() or 0
        written = rows.filter(rows[ORIGIN].is_valid())
        self.found.origins |= dict(zip(written[ID].to_pylist(), written[ORIGIN].to_pylist(), strict=True))
        self.found.columns |= {f.name: kind for f in rows.schema if rows[f.name].null_count < len(rows)
                               and f.name not in self.found.columns and (kind := kind_of(f))}
        self.found.labels.update(pc.unique(rows[LABEL].drop_null()).to_pylist())
        self.found.media.update(one for name in MEDIA for one in rows[name].drop_null().to_pylist())
        self.ids.append(rows[ID])
        self.domains.append(rows[DOMAIN])
        self.held.append(rows)
        self.rows, self.schema = self.rows + len(rows), rows.schema
        rows_held, bytes_held = sum(t.num_rows for t in self.held), sum(t.nbytes for t in self.held)
        if rows_held >= GROUP_ROWS or bytes_held >= FILE_BYTES / 16:
            self.flush()

    def flush(self) -> None:
        group = pa.concat_tables(self.held) if self.held else None
        self.held = []
        if group is None or not group.num_rows:
            return
        if self.file is None:
            self.found.files.append(self.folder / f"{len(self.found.files):05d}.parquet")
            self.file = pq.ParquetWriter(self.found.files[-1], group.schema, compression="zstd")
            self.written = 0
        self.file.write_table(group)
        self.written += group.nbytes
        if self.written >= FILE_BYTES:
            self.file.close()
            self.file = None

    def close(self) -> None:
        self.flush()
        if self.file is not None:
            self.file.close()

    def table(self) -> Table:
        for name, arrays in (("ids", self.ids), ("domains", self.domains)):
            whole = pa.chunked_array([chunk for array in arrays for chunk in array.chunks], pa.large_string())
            setattr(self.found, name, whole.to_numpy().astype(object))
        return self.found


def _blank(rows: pa.Table) -> Any:
    """Which documents have nothing to learn from: neither text nor anything typed."""
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(pc.fill_null(rows[TEXT], ""))), 0)
    for name in (MESSAGES, CHOSEN, *MEDIA):
        blank = pc.and_(blank, pc.is_null(rows[name]))
    return blank


def _pairs_of_messages(rows: pa.Table) -> Any:
    """Which documents are pairs of conversations, not of plain text."""
    return pc.starts_with(rows[CHOSEN], "[")


def rows(table: Table, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of the written documents, in the order of the files, with some of their columns."""
    for file in table.files:
        with pq.ParquetFile(file, pre_buffer=False) as parquet:
            for batch in parquet.iter_batches(batch_size=256, columns=list(columns)):
                yield from batch.to_pylist()
