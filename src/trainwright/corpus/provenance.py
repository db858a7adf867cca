"""Where each document of a corpus came from, which method dropped it, and why."""
from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import daft
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainwright.core.context import Context
from trainwright.core.method import Method
from trainwright.corpus import editing, left_out
from trainwright.corpus.columns import DOMAIN, ID, ORIGIN, TEXT
from trainwright.corpus.documents import failures, in_files, lies_in_files

if TYPE_CHECKING:
    from daft import DataFrame

FILE = "provenance.parquet"
"""One row for each document that any method saw: ``id``, ``domain``, ``characters``, ``origin`` (the document
that it was written from), ``written`` (the method from which it came), ``dropped`` (the method that left it
out, ``corpus`` where it was blank; null where it was kept), and of dropped ones ``reason`` (in words),
``score`` and ``partner`` (the number and the other document, or the benchmark, that it was dropped for; null
where the method names none)."""
STAGE = "corpus"
"""What drops a document that is blank."""
BINS = 28
"""Classes of length in a summary."""
TAP = pa.schema([(ID, pa.large_string()), (DOMAIN, pa.large_string()), ("characters", pa.int64()),
                 (ORIGIN, pa.large_string())])
"""What is noted of each row that leaves a method."""
WHY = pa.schema([(ID, pa.large_string()), ("reason", pa.large_string()), ("score", pa.float64()),
                 ("partner", pa.large_string())])
"""What a method notes of a document that it drops."""


def because(ctx: Context, ids: Any, reason: str | Sequence[str], score: Any = None,
            partner: Sequence[str] | None = None) -> None:
    """Note why a method drops documents. Without it the reason is the method with its settings.

    Args:
        ids: the documents, as an array or a list. To name some that are kept is no harm.
        reason: in words, the same for all of them or one each.
        score: a number each.
        partner: the id of the document, or the name of the benchmark, that each was dropped for.
    """
    if ctx.folder is None or not len(ids):
        return
    folder = ctx.folder / "because"
    folder.mkdir(exist_ok=True)
    reasons = [reason] * len(ids) if isinstance(reason, str) else list(reason)
    names = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids, pa.large_string())
    numbers = [None] * len(ids) if score is None else np.asarray(score, dtype=np.float64)
    others = [None] * len(ids) if partner is None else partner
    rows = pa.table([names, reasons, numbers, others], names=WHY.names).cast(WHY)
    pq.write_table(rows, folder / f"{uuid.uuid4().hex}.parquet")


def words(method: Method) -> str:
    """A method with those of its settings that are not what they are by default: the reason where it names
    none."""
    said = [f"{f.name} = {value!r}" for f in dataclasses.fields(method)  # type: ignore[arg-type]
            if (value := getattr(method, f.name)) != f.default]
    return f"{method.name}: {', '.join(said)}" if said else method.name


def tapped(table: DataFrame, folder: Path, number: int, method: str = "") -> DataFrame:
    """``table``, which notes what goes by when it runs: id, domain, characters and origin of each row, in
    ``folder`` under ``number``. A row that goes by with a text that is not what is learned of it is an error
    of the ``method``.

    All columns go through Python together, untouched and uncopied. Else the engine would move a later filter
    in front of a column that it does not need, and rows would be missed; or an edit of a later method, and it
    would be seen too early.
    """
    names, texts = table.column_names, left_out.Notes(folder, number)
    row = daft.DataType.struct({name: table.schema()[name].dtype for name in names})

    @daft.func.batch(return_dtype=row)  # type: ignore[untyped-decorator]
    def noting(*columns: Any) -> Any:
        arrays = [column.to_arrow() for column in columns]
        rows = pa.table(arrays, names=names)
        try:
            editing.check(rows, method)
        except Exception as error:  # the engine would hand on its text only
            failures.append(error)
            raise
        seen = pa.table({ID: rows[ID], DOMAIN: rows[DOMAIN], "characters": pc.utf8_length(rows[TEXT]),
                         ORIGIN: rows[ORIGIN]})
        pq.write_table(seen.cast(TAP), folder / f"{number:03d}-{uuid.uuid4().hex}.parquet")
        texts.add(rows)
        return pa.StructArray.from_arrays(arrays, names)

    noted = table.select(noting(*(table[name] for name in names)).alias("row"))
    made = noted.select(*(noted["row"].get(name).alias(name) for name in names))
    return in_files(made) if lies_in_files(table) else made


def trace(taps: Path, names: Sequence[str]) -> pa.Table:
    """What came of each document, from what ``tapped`` noted behind each of the methods ``names``.

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


def explained(traced: pa.Table, usual: Mapping[str, str], scratch: Mapping[str, Path],
              blank: Sequence[str]) -> pa.Table:
    """The table of ``FILE``: ``traced`` with the reasons.

    Args:
        usual: of each method the reason where it notes none.
        scratch: of each method the folder in which it noted its own.
        blank: documents that came out of the last method with nothing to learn from.
    """
    empty = pc.and_(traced["dropped"].is_null(),
                    pc.is_in(traced[ID], value_set=pa.array(blank, pa.large_string())))
    traced = traced.set_column(traced.column_names.index("dropped"), "dropped",
                               pc.if_else(empty, STAGE, traced["dropped"]))
    notes = {name: _noted(folder) for name, folder in scratch.items()}
    found: dict[str, list[Any]] = {name: [] for name in WHY.names[1:]}
    for one, dropper in zip(traced[ID].to_pylist(), traced["dropped"].to_pylist(), strict=True):
        default = None if dropper is None else "blank" if dropper == STAGE else usual.get(dropper)
        why = notes.get(dropper, {}).get(one, (default, None, None))
        for values, value in zip(found.values(), why, strict=True):
            values.append(value)
    for field in list(WHY)[1:]:
        traced = traced.append_column(field, pa.array(found[field.name], field.type))
    return traced


def _noted(folder: Path) -> dict[str, tuple[str, float | None, str | None]]:
    """Reason, score and partner of the documents that a method named."""
    files = sorted((folder / "because").glob("*.parquet"))
    rows = (row for file in files for row in pq.read_table(file, schema=WHY).to_pylist())
    return {row[ID]: (row["reason"], row["score"], row["partner"]) for row in rows}


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
    """All documents and those that were kept, by domain (by domain and writer where several methods wrote
    documents of one) and by length in characters: ``{"domains": {NAME: [all, kept]}, "lengths": {"edges",
    "all", "kept"}}``."""
    stays = table["dropped"].is_null().to_numpy()
    domain, written = (table[name].to_numpy().astype(object) for name in (DOMAIN, "written"))
    writers: dict[str, set[str]] = {}
    for d, w in zip(domain, written, strict=True):
        writers.setdefault(d, set()).add(w)
    groups = np.array([f"{d}, by {w}" if len(writers[d]) > 1 else d
                       for d, w in zip(domain, written, strict=True)], dtype=object)
    names, place = np.unique(groups.astype(str), return_inverse=True)
    every = np.bincount(place, minlength=len(names))
    those = np.bincount(place, stays, minlength=len(names)).astype(int)
    sizes = np.maximum(table["characters"].to_numpy(), 1)
    least, most = (sizes.min(), max(sizes.max(), sizes.min() + 1)) if len(sizes) else (1, 1)
    edges = np.geomspace(least, most, BINS + 1)
    edges[0], edges[-1] = np.floor(edges[0]), np.ceil(edges[-1])
    return {"domains": {n: [int(a), int(k)] for n, a, k in zip(names, every, those, strict=True)},
            "lengths": {"edges": edges.round(2).tolist(), "all": np.histogram(sizes, edges)[0].tolist(),
                        "kept": np.histogram(sizes[stays], edges)[0].tolist()}}


def _seen(taps: Path, number: int) -> pa.Table:
    files = sorted(taps.glob(f"{number:03d}-*.parquet"))
    rows = pa.concat_tables([TAP.empty_table(), *(pq.read_table(file, schema=TAP) for file in files)])
    # parts of the table come in any order, and a cluster may run one twice
    _, first = np.unique(rows[ID].to_numpy(), return_index=True)
    return rows.take(first).combine_chunks()


def _tally(column: pa.ChunkedArray) -> dict[str, int]:
    return {row["values"]: row["counts"] for row in pc.value_counts(column).to_pylist()}
