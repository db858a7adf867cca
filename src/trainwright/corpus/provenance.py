"""Where each document of a corpus came from, and which method dropped it."""
from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import daft
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainwright.corpus.documents import DOMAIN, ID, TEXT, in_files, lies_in_files

if TYPE_CHECKING:
    from daft import DataFrame

FILE = "provenance.parquet"
"""One row for each document that any method saw: ``id``, ``domain``, ``characters``, ``written`` (the method from which it
came) and ``dropped`` (the method that left it out; null where it was kept)."""


BINS = 28
"""Classes of length in a summary."""
TAP = pa.schema([(ID, pa.large_string()), (DOMAIN, pa.large_string()), ("characters", pa.int64())])
"""What is noted of each row that leaves a method."""


def tapped(table: DataFrame, folder: Path, number: int) -> DataFrame:
    """``table``, which notes what goes by when it runs: id, domain and characters of each row, in ``folder`` under ``number``.

    Every column goes through Python, untouched and uncopied: the engine would move a later filter in front of a column that it
    does not need, and rows would be missed.
    """
    def passing(name: str) -> Any:
        @daft.func.batch(return_dtype=table.schema()[name].dtype)  # type: ignore[untyped-decorator]
        def same(column: Any) -> Any:
            return column
        return same(table[name])

    @daft.func.batch(return_dtype=daft.DataType.string())  # type: ignore[untyped-decorator]
    def noting(ids: Any, domains: Any, texts: Any) -> Any:
        seen = pa.table({ID: ids.to_arrow(), DOMAIN: domains.to_arrow(), "characters": pc.utf8_length(texts.to_arrow())})
        pq.write_table(seen.cast(TAP), folder / f"{number:03d}-{uuid.uuid4().hex}.parquet")
        return ids

    made = table.with_columns({name: passing(name) for name in table.column_names if name != ID}
                              | {ID: noting(table[ID], table[DOMAIN], table[TEXT])}).select(*table.column_names)
    return in_files(made) if lies_in_files(table) else made


def trace(taps: Path, names: Sequence[str]) -> pa.Table:
    """The table of ``FILE``, from what ``tapped`` noted behind each of the methods ``names``.

    A document that is dropped and written again later counts as written by the later method.
    """
    seen = [_seen(taps, number) for number in range(len(names))]
    parts: list[pa.Table] = []
    for number, (name, now) in enumerate(zip(names, seen, strict=True)):
        before = seen[number - 1] if number else TAP.empty_table()
        fresh = now.filter(pc.invert(pc.is_in(now[ID], value_set=before[ID])))
        dropped = pa.nulls(len(fresh), pa.large_string())
        gone = np.zeros(len(fresh), dtype=bool)
        for later in range(number + 1, len(names)):
            lost = ~pc.is_in(fresh[ID], value_set=seen[later][ID]).to_numpy() & ~gone
            dropped = pc.if_else(pa.array(lost), names[later], dropped)
            gone |= lost
        parts.append(fresh.append_column("written", pa.array([name] * len(fresh), pa.large_string()))
                     .append_column("dropped", dropped))
    return pa.concat_tables(parts)


def counts(table: pa.Table, names: Sequence[str]) -> list[dict[str, Any]]:
    """Documents that each method was given, wrote, dropped and handed on."""
    written, dropped = (_tally(table[column]) for column in ("written", "dropped"))
    out: list[dict[str, Any]] = []
    for name in names:
        given: int = out[-1]["out"] if out else 0
        new, gone = written.get(name, 0), dropped.get(name, 0)
        out.append({"method": name, "in": given, "written": new, "dropped": gone, "out": given + new - gone})
    return out


def kept(table: pa.Table) -> dict[str, Any]:
    """All documents and those that were kept, by domain (by domain and writer where several methods wrote documents of one) and
    by length in characters: ``{"domains": {NAME: [all, kept]}, "lengths": {"edges", "all", "kept"}}``."""
    stays = table["dropped"].is_null().to_numpy()
    domain, written = (table[name].to_numpy().astype(object) for name in (DOMAIN, "written"))
    writers: dict[str, set[str]] = {}
    for d, w in zip(domain, written, strict=True):
        writers.setdefault(d, set()).add(w)
    groups = np.array([f"{d}, by {w}" if len(writers[d]) > 1 else d for d, w in zip(domain, written, strict=True)], dtype=object)
    names, place = np.unique(groups.astype(str), return_inverse=True)
    every, those = np.bincount(place, minlength=len(names)), np.bincount(place, stays, minlength=len(names)).astype(int)
    sizes = np.maximum(table["characters"].to_numpy(), 1)
    edges = np.geomspace(sizes.min(), max(sizes.max(), sizes.min() + 1), BINS + 1) if len(sizes) else np.ones(BINS + 1)
    edges[0], edges[-1] = np.floor(edges[0]), np.ceil(edges[-1])
    return {"domains": {n: [int(a), int(k)] for n, a, k in zip(names, every, those, strict=True)},
            "lengths": {"edges": edges.round(2).tolist(), "all": np.histogram(sizes, edges)[0].tolist(),
                        "kept": np.histogram(sizes[stays], edges)[0].tolist()}}


def _seen(taps: Path, number: int) -> pa.Table:
    files = sorted(taps.glob(f"{number:03d}-*.parquet"))
    rows = pa.concat_tables([pq.read_table(file, schema=TAP) for file in files]) if files else TAP.empty_table()
    _, first = np.unique(rows[ID].to_numpy(), return_index=True)           # a cluster may run a part of the table twice
    return rows.take(np.sort(first)).combine_chunks()


def _tally(column: pa.ChunkedArray) -> dict[str, int]:
    return {row["values"]: row["counts"] for row in pc.value_counts(column).to_pylist()}
