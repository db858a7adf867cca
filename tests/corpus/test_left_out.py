"""Examples of dropped documents: the texts of then, beside those of the documents they were dropped for."""
from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from tests.corpus.corpora import KeepLong, build, texts
from trainwright.corpus import left_out
from trainwright.corpus.columns import ARROW
from trainwright.data.filter.minhash import Minhash

LONG = "the grey sea and the cold rain fell on a ship that went from one island to the next all night long"


def test_a_near_duplicate_stands_beside_the_document_that_was_kept(tmp_path: Path) -> None:
    twins = [{"id": "first", "text": f"{LONG} and home"}, {"id": "second", "text": f"{LONG} and back"}]
    build(tmp_path / "c", [*texts(8), *twins], Minhash(threshold=0.6))
    (row,) = (r for r in left_out.examples(tmp_path / "c") if r["method"] == "minhash")
    assert {row["id"], row["partner"]} == {"first", "second"} and row["reason"] == "near-duplicate"
    written = {t["id"]: t["text"] for t in twins}
    assert row["text"] == written[row["id"]] and row["partner_text"] == written[row["partner"]]


def test_the_reason_of_a_method_that_says_none_is_its_settings(tmp_path: Path) -> None:
    build(tmp_path / "c", [*texts(30), {"id": "short", "text": "x"}], KeepLong(least=2))
    (row,) = left_out.examples(tmp_path / "c")
    assert (row["id"], row["reason"], row["text"]) == ("short", "keep_long: least = 2", "x")
    assert row["partner"] is None and row["partner_text"] is None


def test_of_a_conversation_without_a_text_the_messages_are_shown() -> None:
    rows = pa.Table.from_pylist([{"id": "a", "text": "", "messages": "[hello]"}, {"id": "b", "text": "words"},
                                 {"id": "c", "text": None, "chosen": "better"}], ARROW)
    assert left_out.beginnings(rows).to_pylist() == ["[hello]", "words", "better"]


def test_where_nothing_was_dropped_there_is_no_file(tmp_path: Path) -> None:
    build(tmp_path / "c", texts(10))
    assert left_out.examples(tmp_path / "c") == [] and not (tmp_path / "c" / left_out.FILE).exists()


def test_no_more_than_so_many_and_the_beginnings_only(tmp_path: Path) -> None:
    rows = [{"id": f"s{i}", "text": "x" * 3000} for i in range(2 * left_out.MOST)]
    build(tmp_path / "c", [*texts(4), *rows, {"id": "long", "text": "y" * 4000}], KeepLong(least=3500),
          tokenizer=None)
    found = left_out.examples(tmp_path / "c")
    assert len(found) == left_out.MOST and "long" not in {r["id"] for r in found}
    assert max(len(r["text"]) for r in found) == left_out.CHARACTERS


def test_of_many_documents_few_are_noted_and_always_the_lowest(tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(left_out, "FIRST", 10)
    rows = pa.Table.from_pylist([{"id": f"d{i}", "text": "t"} for i in range(4000)], ARROW)
    notes = left_out.Notes(tmp_path, 0)
    for start in range(0, 4000, 1000):
        notes.add(rows.slice(start, 1000))
    import pyarrow.parquet as pq
    noted = {one for f in tmp_path.glob("texts-000-*") for one in pq.read_table(f)["id"].to_pylist()}
    low = {f"d{i}" for i in range(4000) if left_out.place(f"d{i}") < left_out.SHARE}
    assert noted == low | {f"d{i}" for i in range(10)} and 30 < len(low) < 100
