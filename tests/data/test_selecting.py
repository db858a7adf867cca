"""What curating methods share that choose."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import daft
import pyarrow as pa
import pytest

from trainwright.core import documents
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.data import _selecting


def table(**more: Any) -> Any:
    ids = [f"d{i}" for i in range(6)]
    return daft.from_arrow(pa.table({"id": pa.array(ids, pa.large_string()), "text": ids} | more))


def rows(frame: Any) -> list[dict[str, Any]]:
    return [row for batch in documents.stream(frame) for row in batch.to_pylist()]


def test_amounts_by_hand() -> None:
    assert _selecting.amount(25, None, None, "m") == 3            # a tenth, rounded half up
    assert _selecting.amount(5, None, 0.01, "m") == 1
    assert _selecting.amount(7, 7, None, "m") == 7
    with pytest.raises(UserError, match=r"m: count = 8 is more than the 7 documents"):
        _selecting.amount(7, 8, None, "m")
    with pytest.raises(UserError, match="nothing to choose from"):
        _selecting.amount(0, None, 0.5, "m")
    for count, share in ((1, 0.5), (0, None), (None, 0.0), (None, 1.5)):
        with pytest.raises(ValueError):
            _selecting.check_amount(count, share)


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
    first = _selecting.settled(frame(), ctx)
    assert rows(first) == rows(first) == rows(_selecting.settled(frame(), ctx))
    assert sum(ran) == 6
    assert len(rows(_selecting.settled(table().where(daft.lit(False)), ctx, "none"))) == 0


def test_scores_and_their_errors() -> None:
    good = table(score=[1.0, None, 3.0, 4.0, 5.0, 6.0], words=["a"] * 6, wrong=[1.0, float("nan"), 3, 4, 5, 6])
    ids, values = _selecting.scores(good, "score", "m")
    assert ids.tolist() == ["d0", "d2", "d3", "d4", "d5"] and values.tolist() == [1, 3, 4, 5, 6]
    with pytest.raises(UserError, match=r"reads the column 'scores', which no method before it has written.*score"):
        _selecting.scores(good, "scores", "m")
    with pytest.raises(UserError, match="not numbers"):
        _selecting.scores(good, "words", "m")
    with pytest.raises(UserError, match=r"1 of 6 documents have no number as 'wrong' but NaN, the first 'd1'"):
        _selecting.scores(good, "wrong", "m")


def test_keep_and_attach() -> None:
    kept = _selecting.keep(table(), ["d4", "d1", "nobody"])
    assert sorted(r["id"] for r in rows(kept)) == ["d1", "d4"]
    told = pa.table({"id": pa.array(["d1"], pa.large_string()), "score": [0.5]})
    once = _selecting.attach(table(score=[9.0] * 6), told)        # a column of that name is replaced
    assert {r["id"]: r["score"] for r in rows(once)} == {"d1": 0.5} | {f"d{i}": None for i in (0, 2, 3, 4, 5)}
