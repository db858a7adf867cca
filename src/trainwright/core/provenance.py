"""Where each document of a corpus came from, and which method dropped it."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainwright.core.documents import DOMAIN, ID, TAP

FILE = "provenance.parquet"
"""One row for each document that any method saw: ``id``, ``domain``, ``characters``, ``written`` (the method from which it
came) and ``dropped`` (the method that left it out; null where it was kept)."""


BINS = 28
"""Classes of length in a summary."""


def trace(taps: Path, names: Sequence[str]) -> pa.Table:
    """The table of ``FILE``, from what ``documents.tapped`` noted behind each of the methods ``names``.

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
