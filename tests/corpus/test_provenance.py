from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.frames import frame, told
from trainwright.corpus import documents, provenance
from trainwright.corpus.columns import ARROW


def tap(folder: Path, number: int, ids: str, part: str = "a") -> None:
    rows = pa.table({"id": list(ids), "domain": ["d"] * len(ids), "characters": [1] * len(ids),
                     "origin": pa.nulls(len(ids))})
    pq.write_table(rows.cast(provenance.TAP), folder / f"{number:03d}-{part}.parquet")


def test_what_is_written_and_dropped_by_hand(tmp_path: Path) -> None:
    """a and b come first; the second adds c, d and drops a; the third drops c and brings a back; nobody adds anything after."""
    for number, ids in enumerate(("ab", "bcd", "bda", "bda")):
        tap(tmp_path, number, ids)
    names = ["read", "add", "swap", "nothing"]
    table = provenance.trace(tmp_path, names)
    found = {(r["id"], r["written"]): r["dropped"] for r in table.to_pylist()}
    assert found == {("a", "read"): "add", ("b", "read"): None, ("c", "add"): "swap", ("d", "add"): None, ("a", "swap"): None}
    assert [(r["in"], r["written"], r["dropped"], r["out"]) for r in provenance.counts(table, names)] == [
        (0, 2, 0, 2), (2, 2, 1, 3), (3, 1, 1, 3), (3, 0, 0, 3)]


def test_a_part_that_ran_twice_counts_once(tmp_path: Path) -> None:
    tap(tmp_path, 0, "abc")
    tap(tmp_path, 0, "bc", "again")
    assert len(provenance.trace(tmp_path, ["read"])) == 3


def test_a_method_after_which_nothing_is_left(tmp_path: Path) -> None:
    tap(tmp_path, 0, "ab")
    table = provenance.trace(tmp_path, ["read", "none"])
    assert table["dropped"].to_pylist() == ["none", "none"]
    assert provenance.counts(table, ["read", "none"])[1]["out"] == 0


def test_rows_are_noted_where_they_leave_a_method(tmp_path: Path) -> None:
    """A filter behind the tap is not moved in front of it."""
    rows: list[dict[str, Any]] = [{"id": str(i), "text": "x" * i, "domain": "d", "source": "s", "metadata": "{}",
                                   "messages": None} for i in range(10)]
    import daft
    table = provenance.tapped(daft.from_arrow(pa.Table.from_pylist(rows, ARROW)), tmp_path, 0)
    kept = provenance.tapped(table.where(table["id"] == "3"), tmp_path, 1)
    assert sum(batch.num_rows for batch in documents.stream(kept)) == 1
    told = provenance.trace(tmp_path, ["all", "one"])
    assert len(told) == 10 and sum(d is None for d in told["dropped"].to_pylist()) == 1
    assert sorted(told["characters"].to_pylist()) == list(range(10))


def test_a_tap_sees_what_its_method_hands_on(tmp_path: Path) -> None:
    """And not what a later method makes of it."""
    first = provenance.tapped(frame([{"id": "a", "text": "twenty characters..."}]), tmp_path, 0, "first")
    second = provenance.tapped(first.with_column("text", first["text"].left(3)), tmp_path, 1, "second")
    assert told(second)["a"]["text"] == "twe"
    seen = [pq.read_table(next(tmp_path.glob(f"{n:03d}-*.parquet")))["characters"].to_pylist() for n in (0, 1)]
    assert seen == [[20], [3]]
