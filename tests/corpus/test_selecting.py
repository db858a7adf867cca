"""What curating methods share that choose."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import daft
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus import documents, provenance, selecting
from trainwright.corpus.sources import document
from trainwright.data.select.random_subset import RandomSubset


def table(**more: Any) -> Any:
    ids = [f"d{i}" for i in range(6)]
    return daft.from_arrow(pa.table({"id": pa.array(ids, pa.large_string()), "text": ids} | more))


def rows(frame: Any) -> list[dict[str, Any]]:
    return [row for batch in documents.stream(frame) for row in batch.to_pylist()]


def test_amounts_by_hand() -> None:
    assert selecting.amount(25, None, None, "m") == 3            # a tenth, rounded half up
    assert selecting.amount(5, None, 0.01, "m") == 1
    assert selecting.amount(7, 7, None, "m") == 7
    with pytest.raises(UserError, match=r"m: count = 8 is more than the 7 documents"):
        selecting.amount(7, 8, None, "m")
    with pytest.raises(UserError, match="nothing to choose from"):
        selecting.amount(0, None, 0.5, "m")
    for count, share in ((1, 0.5), (0, None), (None, 0.0), (None, 1.5)):
        with pytest.raises(ValueError):
            selecting.check_amount(count, share)


def test_a_settled_table_runs_once_and_after_an_interruption(tmp_path: Path) -> None:
    ran = []

    @daft.func.batch(return_dtype=daft.DataType.string())
    def seen(column: Any) -> Any:
        ran.append(len(column))
        return column

    def frame() -> Any:
        made = table()
        return made.with_column("text", seen(made["text"]))

    (tmp_path / "table.unfinished").mkdir()                       # an interrupted run left half of it
    (tmp_path / "table.unfinished" / "rows.parquet").write_bytes(b"half")
    ctx = Context(folder=tmp_path)
    first = selecting.settled(frame(), ctx)
    assert rows(first) == rows(first) == rows(selecting.settled(frame(), ctx))
    assert sum(ran) == 6
    assert len(rows(selecting.settled(table().where(daft.lit(False)), ctx, "none"))) == 0


def test_a_table_in_files_is_not_copied_for_a_second_look_and_counted_once(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([document(id=f"d{i}", text=f"t{i}", domain="d",
                                                  source="s") for i in range(6)]),
                   tmp_path / "rows.parquet")
    taps = tmp_path / "taps"
    taps.mkdir()
    frame = provenance.tapped(documents.parquet([tmp_path / "rows.parquet"]), taps, 0)
    ctx = Context(folder=tmp_path / "stage")
    assert selecting.settled(frame, ctx, often=False) is frame and not (tmp_path / "stage").exists()
    chosen = provenance.tapped(RandomSubset(count=2).apply(frame, ctx), taps, 1)
    assert len(rows(chosen)) == 2 and not (tmp_path / "stage").exists()
    counted = provenance.counts(provenance.trace(taps, ["from.data", "random_subset"]),
                                ["from.data", "random_subset"])
    assert counted[1] == {"method": "random_subset", "in": 6, "written": 0, "dropped": 4, "out": 2}
    made = frame.with_column("twice", frame["text"] + frame["text"])
    assert selecting.settled(made, ctx, often=False) is not made and (tmp_path / "stage" / "table").is_dir()


def test_scores_and_their_errors() -> None:
    good = table(score=[1.0, None, 3.0, 4.0, 5.0, 6.0], words=["a"] * 6,
                 wrong=[1.0, float("nan"), 3, 4, 5, 6])
    ids, values = selecting.scores(good, "score", "m")
    assert ids.tolist() == ["d0", "d2", "d3", "d4", "d5"] and values.tolist() == [1, 3, 4, 5, 6]
    with pytest.raises(UserError,
                       match=r"reads the column 'scores', which no method before it has written.*score"):
        selecting.scores(good, "scores", "m")
    with pytest.raises(UserError, match="not numbers"):
        selecting.scores(good, "words", "m")
    with pytest.raises(UserError,
                       match=r"1 of 6 documents have no number as 'wrong' but NaN, the first 'd1'"):
        selecting.scores(good, "wrong", "m")


def test_keep_and_attach() -> None:
    kept = selecting.keep(table(), ["d4", "d1", "nobody"])
    assert sorted(r["id"] for r in rows(kept)) == ["d1", "d4"]
    told = pa.table({"id": pa.array(["d1"], pa.large_string()), "score": [0.5]})
    once = selecting.attach(table(score=[9.0] * 6), told)        # a column of that name is replaced
    assert {r["id"]: r["score"] for r in rows(once)} == {"d1": 0.5} | {f"d{i}": None for i in (0, 2, 3, 4, 5)}
