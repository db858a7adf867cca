"""What methods share that look at the whole table before they choose."""
from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainwright.core.context import Context
from trainwright.core.errors import UserError, suggest

if TYPE_CHECKING:
    from daft import DataFrame

GROUP_ROWS, GROUP_BYTES = 4096, 32 << 20
"""Of a row group of a table that is kept for a while."""


def check_amount(count: int | None, share: float | None) -> None:
    """For ``__post_init__`` of what keeps a part of the documents: ``count`` or ``share``, not both.

    Raises:
        ValueError: both, or one that is not possible.
    """
    if count is not None and share is not None:
        raise ValueError("say count or share, not both")
    if count is not None and count < 1:
        raise ValueError(f"count must be positive, not {count}")
    if share is not None and not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, not {share}")


def amount(documents: int, count: int | None, share: float | None, method: str) -> int:
    """Documents to keep of so many: ``count``, or a ``share`` of them (a tenth where neither is said), one at
    least.

    Raises:
        UserError: there is none to choose from, or fewer than ``count``.
    """
    if not documents:
        raise UserError(f"{method} has nothing to choose from: no document came in.")
    if count is not None and count > documents:
        raise UserError(f"{method}: count = {count:,} is more than the {documents:,} documents that came in.")
    return count or max(1, math.floor((0.1 if share is None else share) * documents + 0.5))


def settled(documents: DataFrame, ctx: Context, name: str = "table", often: bool = True) -> DataFrame:
    """The table, run once: what comes before it does not run again for each look at it. It lies in the
    stage's scratch until the stage is done, so that an interrupted stage need not make it again; as it is,
    since that is three times as fast as compressed.

    Args:
        often: whether the text is read more than once; if not, a table that only needs to be read is not
            written first.
    """
    from trainwright.corpus.documents import lies_in_files, parquet, stream
    if not often and lies_in_files(documents):
        return documents
    assert ctx.folder is not None
    folder, unfinished = ctx.folder / name, ctx.folder / f"{name}.unfinished"
    if not folder.is_dir():
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        schema = documents.schema().to_pyarrow_schema()
        with pq.ParquetWriter(unfinished / "rows.parquet", schema, compression="none", use_dictionary=False,
                              write_statistics=False) as file:
            for group in _groups(stream(documents), schema):
                file.write_table(group)
        unfinished.rename(folder)
    return parquet([folder / "rows.parquet"])


def _groups(batches: Iterable[Any], schema: pa.Schema) -> Iterator[pa.Table]:
    """Tables of some thousand rows, or of fewer that are large."""
    held: list[pa.Table] = []
    for batch in batches:
        held.append(pa.Table.from_batches([batch]).cast(schema))
        if sum(len(t) for t in held) >= GROUP_ROWS or sum(t.nbytes for t in held) >= GROUP_BYTES:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def columns(documents: DataFrame, *names: str) -> pa.Table:
    """Some columns of the whole table, in memory."""
    from trainwright.corpus.documents import stream
    from trainwright.corpus.streaming import owned
    wanted = documents.select(*names)
    batches = [owned(b).cast(wanted.schema().to_pyarrow_schema()) for b in stream(wanted)]
    return pa.Table.from_batches(batches, wanted.schema().to_pyarrow_schema()).combine_chunks()


def need(documents: DataFrame, column: str, method: str, made_by: str = "") -> None:
    """Raise a UserError where the table lacks a column that a method reads."""
    if column not in documents.column_names:
        how = f" ({made_by})" if made_by else ""
        raise UserError(f"{method} reads the column {column!r}, which no method before it has written{how}"
                        f"{suggest(column, documents.column_names)}.")


def scores(documents: DataFrame, column: str, method: str,
           made_by: str = "") -> tuple[NDArray[np.object_], NDArray[np.float64]]:
    """Ids and numbers of a score column; documents without a score (null) are left out.

    Raises:
        UserError: no such column, one that holds no numbers, a NaN.
    """
    need(documents, column, method, made_by)
    table = columns(documents, "id", column)
    kind = table[column].type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise UserError(f"{method} reads the column {column!r} as a score; it holds {kind}, not numbers.")
    table = table.filter(table[column].is_valid())
    ids, values = table["id"].to_numpy().astype(object), table[column].to_numpy().astype(np.float64)
    if len(wrong := ids[np.isnan(values)]):
        raise UserError(f"{method}: {len(wrong):,} of {len(ids):,} documents have no number as {column!r} "
                        f"but NaN, the first {wrong[0]!r}: the method that wrote it went wrong.")
    return ids, values


def keep(documents: DataFrame, ids: Sequence[str] | NDArray[np.object_]) -> DataFrame:
    """The rows of these documents."""
    from trainwright.corpus.streaming import among
    return documents.where(among(documents, ids))


def keep_first(documents: DataFrame, ids: NDArray[np.object_], order: NDArray[np.int64], many: int,
               ctx: Context, by: str, values: NDArray[Any]) -> DataFrame:
    """The rows of the first ``many`` documents of ``ids[order]``. Of the others it is noted that they are not
    among those by the column ``by``, with their ``values``."""
    from trainwright.corpus.provenance import because
    rest = order[many:]
    because(ctx, ids[rest], f"not among the {many:,} best by {by}", score=values[rest])
    return keep(documents, ids[order[:many]])


def attach(documents: DataFrame, told: pa.Table) -> DataFrame:
    """``documents`` with the columns of ``told``, which has an ``id``; a document that it does not name has
    null there."""
    from trainwright.corpus.streaming import looked_up
    new = looked_up(documents, told)
    return documents.with_columns(new).select(*[n for n in documents.column_names if n not in new], *new)
