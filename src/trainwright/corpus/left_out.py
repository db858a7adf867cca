"""Examples of what a corpus left out: dropped documents, each beside the one that it was dropped for."""
from __future__ import annotations

import uuid
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainwright.corpus.columns import CHOSEN, ID, MESSAGES, TEXT

FILE = "dropped.parquet"
"""Some of the dropped documents: ``id``, ``domain``, ``method`` (which dropped it), ``reason``, ``score``,
``partner``, and the beginnings of both texts (``text``, ``partner_text``; null where it is not known)."""
MOST = 20
"""Examples of a method."""
CHARACTERS = 2000
"""Of a text, at most."""
FIRST, SHARE = 2048, 1 / 64
"""So many documents are noted at each place with their texts, and this share of all further ones."""
NOTED = pa.schema([(ID, pa.large_string()), ("text", pa.large_string())])


class Notes:
    """The texts of some of the documents that go by behind a method, as files in ``folder``."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number, self.seen = folder, number, 0

    def add(self, rows: pa.Table) -> None:
        """Note a batch."""
        ids = rows[ID].to_pylist()
        chosen = [i for i, one in enumerate(ids)
                  if one is not None and (self.seen + i < FIRST or place(one) < SHARE)]
        self.seen += len(ids)
        if not chosen:
            return
        some = rows.take(chosen)
        noted = pa.table({ID: some[ID], "text": beginnings(some)}).cast(NOTED)
        pq.write_table(noted, self.folder / f"texts-{self.number:03d}-{uuid.uuid4().hex}.parquet")


def beginnings(rows: pa.Table) -> Any:
    """Of each document the beginning of its text, or where it has none of what else there is to read."""
    own, said, chosen = (rows[name].cast(pa.large_string()) for name in (TEXT, MESSAGES, CHOSEN))
    text = pc.if_else(pc.equal(own, ""), pa.scalar(None, own.type), own)
    return pc.utf8_slice_codeunits(pc.coalesce(text, said, chosen), 0, CHARACTERS)


def place(name: str) -> float:
    """Where a document stands among all, from 0 to 1: the lowest are the examples."""
    return zlib.crc32(name.encode("utf-8", "replace")) / 2**32


def write(folder: Path, traced: pa.Table, taps: Path, files: Sequence[Path]) -> None:
    """Choose the examples of each method and write ``FILE`` into ``folder``, where anything was dropped.

    Args:
        traced: the rows of ``provenance.FILE``.
        taps: the folder in which texts were noted.
        files: the documents that were kept.
    """
    gone = traced.filter(traced["dropped"].is_valid())
    if not len(gone):
        return
    named = {*gone[ID].to_pylist(), *gone["partner"].drop_null().to_pylist()}
    wanted = pa.array(sorted(named), pa.large_string())
    texts: dict[str, str] = {}
    for file in sorted(taps.glob("texts-*.parquet")):      # a later text replaces an earlier one
        noted = pq.read_table(file, schema=NOTED)
        noted = noted.filter(pc.is_in(noted[ID], value_set=wanted))
        texts |= dict(zip(noted[ID].to_pylist(), noted["text"].to_pylist(), strict=True))
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(gone.to_pylist(), key=lambda row: place(row[ID])):
        mine = rows.setdefault(row["dropped"], [])
        if len(mine) < MOST and (texts.get(row[ID]) or "").strip():
            mine.append(row)
    chosen = [row for mine in rows.values() for row in mine]
    partners = _kept({row["partner"] for row in chosen} - {None}, files)
    table = [{"id": row[ID], "domain": row["domain"], "method": row["dropped"], "reason": row["reason"],
              "score": row["score"], "partner": row["partner"], "text": texts[row[ID]],
              "partner_text": partners.get(row["partner"], texts.get(row["partner"]))} for row in chosen]
    kinds = {name: pa.float64() if name == "score" else pa.large_string()
             for name in ("id", "domain", "method", "reason", "score", "partner", "text", "partner_text")}
    pq.write_table(pa.Table.from_pylist(table, pa.schema(kinds.items())), folder / FILE, compression="zstd")


def _kept(names: set[str], files: Sequence[Path]) -> dict[str, str]:
    """The beginnings of the texts of documents that were kept."""
    found: dict[str, str] = {}
    wanted = pa.array(sorted(names), pa.large_string())
    for file in files if names else ():
        with pq.ParquetFile(file, pre_buffer=False) as opened:
            for group in range(opened.num_row_groups):
                here = pc.is_in(opened.read_row_group(group, columns=[ID])[ID], value_set=wanted)
                if pc.any(here).as_py():
                    rows = opened.read_row_group(group, columns=[ID, TEXT, MESSAGES, CHOSEN]).filter(here)
                    found |= dict(zip(rows[ID].to_pylist(), beginnings(rows).to_pylist(), strict=True))
    return found


def examples(folder: Path) -> list[dict[str, Any]]:
    """The rows of ``FILE`` in a corpus; none where it dropped nothing."""
    file = folder / FILE
    rows: list[dict[str, Any]] = pq.read_table(file).to_pylist() if file.is_file() else []
    return rows
