"""A table is read no faster than its rows are taken, and a table that is left half taken holds up no
other."""
from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainwright.corpus import documents, streaming
from trainwright.corpus.columns import ARROW, SCHEMA
from trainwright.corpus.selecting import columns
from trainwright.corpus.sources import Row, document, table

MANY, SIZE = 400, 1 << 18


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The rows that were read so far; readers may be 4 MB ahead."""
    seen: list[int] = []
    monkeypatch.setattr(streaming, "AHEAD", 4 << 20)
    monkeypatch.setattr(streaming, "IDLE", 0.02)
    monkeypatch.setattr(streaming, "_ahead", [0.0])
    yield seen


def rows(seen: list[int]) -> Iterator[Row]:
    for number in range(MANY):
        seen.append(number)
        yield document(id=f"d{number:04d}", text=chr(97 + number % 26) * SIZE, domain="d", source="s")


@pytest.mark.slow
def test_a_reader_waits_for_whoever_takes_the_rows(read: list[int]) -> None:
    frame = table("made", [partial(rows, read)])
    taken = []
    for batch in documents.stream(frame.where(frame["domain"] == "d")):
        taken += batch["id"].to_pylist()
        time.sleep(0.005 * len(batch))
        ahead = (len(read) - len(taken)) * SIZE
        assert ahead < 64 << 20, f"{ahead >> 20} of {MANY * SIZE >> 20} MB were read ahead"
    assert taken == [f"d{number:04d}" for number in range(MANY)]


@pytest.mark.slow
def test_files_are_read_no_faster_either(read: list[int], tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    async def noting(batch: pa.RecordBatch) -> None:
        read.append(batch.nbytes)
        await streaming.paced(batch)

    monkeypatch.setattr(documents, "paced", noting)
    file = written(tmp_path)
    monkeypatch.setattr(documents, "BATCH_ROWS", 16)
    ids = [i for batch in documents.stream(documents.parquet([file])) for i in batch["id"].to_pylist()]
    assert ids == [f"d{number:04d}" for number in range(MANY)] and len(read) == MANY // 16
    assert sum(read) > MANY * SIZE


@pytest.mark.slow
def test_only_the_columns_that_are_wanted_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()

    async def noting(batch: pa.RecordBatch) -> None:
        seen.update(batch.schema.names)

    monkeypatch.setattr(documents, "paced", noting)
    frame = documents.parquet([written(tmp_path)])
    for asked, given, needed in ((frame.select("id"), ["id"], {"id"}),
                                 (frame.where(frame["domain"] == "d").select("source"), ["source"],
                                  {"source", "domain"}),
                                 (frame.where(streaming.among(frame, ["d0001"])), [*SCHEMA], {*SCHEMA})):
        seen.clear()
        rows = [row for batch in documents.stream(asked) for row in batch.to_pylist()]
        assert len(rows) == (1 if len(given) > 1 else MANY) and list(rows[0]) == given and seen == needed
    seen.clear()
    assert frame.count_rows() == MANY and "text" not in seen


def written(folder: Path) -> Path:
    with pq.ParquetWriter(folder / "rows.parquet", ARROW) as writer:
        for row in rows([]):
            writer.write_table(pa.Table.from_pylist([row], ARROW))
    return folder / "rows.parquet"


@pytest.mark.slow
def test_what_is_kept_of_a_batch_does_not_keep_its_texts(tmp_path: Path) -> None:
    frame, before = documents.parquet([written(tmp_path)]), pa.total_allocated_bytes()
    for keep in (streaming.owned, lambda column: column):
        kept = [keep(batch["id"]) for batch in documents.stream(frame)]
        assert sum(map(len, kept)) == MANY
        texts_too = pa.total_allocated_bytes() - before > MANY * SIZE / 2
        assert texts_too == (keep is not streaming.owned), "else a column would hold all of its batch"
        del kept
    ids = columns(frame, "id")
    assert len(ids) == MANY and pa.total_allocated_bytes() - before < MANY * SIZE / 2


def test_a_table_that_is_left_half_taken_holds_up_no_other(read: list[int]) -> None:
    other: list[int] = []
    first = documents.stream(table("one", [partial(rows, read)]))
    many = len(next(first))
    taken = sum(len(batch) for batch in documents.stream(table("other", [partial(rows, other)])))
    assert taken == MANY == len(other)
    assert many + sum(len(batch) for batch in first) == MANY and not streaming._takers


def test_rows_are_found_by_id() -> None:
    frame = documents.union(table("made", [partial(rows, [])]), documents.empty())
    told = pa.table({"id": ["d0007", "d0399", "of nobody"], "score": [1.5, None, 3.0],
                     "vector": [[1.0], [2.0, 3.0], None]})
    some = frame.where(streaming.among(frame, ["d0007", "d0399", "of nobody"]))
    new = streaming.looked_up(some, told)
    found = some.with_columns(new).select("id", *new).to_pylist()
    assert found == [{"id": "d0007", "score": 1.5, "vector": [1.0]},
                     {"id": "d0399", "score": None, "vector": [2.0, 3.0]}]
    assert some.with_columns(streaming.looked_up(some, told.slice(1))).to_pydict()["score"] == [None, None]
    assert frame.where(~streaming.among(frame, [])).count_rows() == MANY
