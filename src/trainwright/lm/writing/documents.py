"""Documents around a writer: the originals it reads, and the table of what it wrote."""
from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from trainwright.core.context import Context
from trainwright.core.errors import UserError, suggest
from trainwright.lm.writing.writer import blocks

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.corpus.sources import Row

BLOCK_ROWS = 1024


def kept_table(rows: Iterable[Row], ctx: Context) -> DataFrame:
    """A table of rows that are made now, one block at a time; in the stage's scratch folder until the
    stage is done."""
    from trainwright.corpus.columns import ARROW
    from trainwright.corpus.documents import parquet
    assert ctx.folder is not None
    file, unfinished = ctx.folder / "made.parquet", ctx.folder / "made.unfinished"
    if not file.is_file():
        with pq.ParquetWriter(unfinished, ARROW, compression="zstd") as out:
            for block in blocks(rows, BLOCK_ROWS):
                out.write_table(pa.Table.from_pylist(block, ARROW))
        os.replace(unfinished, file)
    return parquet([file])


def originals(documents: DataFrame, domains: Sequence[str], method: str) -> list[dict[str, str]]:
    """``id``, ``text``, ``domain`` and ``origin`` of the plain documents of some domains (all if none is
    named), sorted by id. What is written from one of them has the same origin, the first-hand document at
    the beginning.

    Raises:
        UserError: a domain without documents, or no document at all.
    """
    from trainwright.corpus.editing import plain
    from trainwright.corpus.selecting import columns
    found = columns(plain(documents), "id", "text", "domain", "origin").to_pylist()
    there = {r["domain"] for r in found}
    for domain in domains:
        if domain not in there:
            raise UserError(f"{method}: there is no document of plain text in the domain {domain!r}"
                            f"{suggest(domain, there)}.")
    chosen = [r | {"text": r["text"] or "", "origin": r["origin"] or r["id"]} for r in found if not domains
              or r["domain"] in domains]
    if not any(r["text"].strip() for r in chosen):
        raise UserError(f"{method} has nothing to read: no document with plain text came in.")
    return sorted(chosen, key=lambda r: r["id"])
