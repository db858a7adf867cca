"""Where each document came from, which method dropped it, and why."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.corpus.corpora import KeepLong, build, texts
from tests.data.frames import frame, told
from trainwright.core.context import Context
from trainwright.core.method import Curate
from trainwright.corpus import documents, provenance
from trainwright.corpus.columns import ARROW
from trainwright.corpus.passes import without


def tap(folder: Path, number: int, ids: str, part: str = "a") -> None:
    rows = pa.table({"id": list(ids), "domain": ["d"] * len(ids), "characters": [1] * len(ids),
                     "origin": pa.nulls(len(ids))})
    pq.write_table(rows.cast(provenance.TAP), folder / f"{number:03d}-{part}.parquet")


def test_what_is_written_and_dropped_by_hand(tmp_path: Path) -> None:
    """a and b come first; the second adds c, d and drops a; the third drops c and brings a back; nobody adds
    anything after."""
    for number, ids in enumerate(("ab", "bcd", "bda", "bda")):
        tap(tmp_path, number, ids)
    names = ["read", "add", "swap", "nothing"]
    table = provenance.trace(tmp_path, names)
    found = {(r["id"], r["written"]): r["dropped"] for r in table.to_pylist()}
    assert found == {("a", "read"): "add", ("b", "read"): None, ("c", "add"): "swap", ("d", "add"): None,
                     ("a", "swap"): None}
    assert [(r["in"], r["written"], r["dropped"], r["out"]) for r in provenance.counts(table, names)] == [
        (0, 2, 0, 2), (2, 2, 1, 3), (3, 1, 1, 3), (3, 0, 0, 3)]


def test_a_part_that_ran_twice_counts_once(tmp_path: Path) -> None:
    tap(tmp_path, 0, "abc")
    tap(tmp_path, 0, "bc", "again")
    assert len(provenance.trace(tmp_path, ["read"])) == 3


def test_the_order_in_which_parts_ran_does_not_matter(tmp_path: Path) -> None:
    """Parts are run by several threads: two runs are the same to the byte nevertheless."""
    for number, parts in enumerate((("dc", "ab"), ("ab", "dc"))):
        (folder := tmp_path / str(number)).mkdir()
        for name, ids in zip("xy", parts, strict=True):
            tap(folder, 0, ids, name)
    one, two = (provenance.trace(tmp_path / str(n), ["read"]) for n in range(2))
    assert one.equals(two) and one["id"].to_pylist() == ["a", "b", "c", "d"]


def test_a_method_after_which_nothing_is_left(tmp_path: Path) -> None:
    tap(tmp_path, 0, "ab")
    table = provenance.trace(tmp_path, ["read", "none"])
    assert table["dropped"].to_pylist() == ["none", "none"]
    assert provenance.counts(table, ["read", "none"])[1]["out"] == 0


def test_rows_are_noted_where_they_leave_a_method(tmp_path: Path) -> None:
    """A filter behind the tap is not moved in front of it."""
    rows: list[dict[str, Any]] = [{"id": str(i), "text": "x" * i, "domain": "d", "source": "s",
                                   "metadata": "{}",
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
    seen = [pq.read_table(next(tmp_path.glob(f"00{n}-*.parquet")))["characters"] for n in (0, 1)]
    assert [characters.to_pylist() for characters in seen] == [[20], [3]]


class Scored(Curate):
    """Drops short documents, and says why of some."""

    least: int = 10
    """Characters."""
    silent: bool = False
    """Whether it leaves it at dropping them."""

    def apply(self, documents: Any, ctx: Context) -> Any:
        ids = ["d/0000", "d/0001", "d/0003"]
        if not self.silent:
            provenance.because(ctx, ids[:2], "too short", score=[1.5, 2.5])
            provenance.because(ctx, pa.chunked_array([ids[2:]]), ["like another"], partner=["d/0007"])
            provenance.because(ctx, [], "nobody")
        return without(documents, pa.array([*ids, "d/0004"]))


def test_each_dropped_document_has_its_reason(tmp_path: Path) -> None:
    build(tmp_path / "c", [*texts(20), {"id": "blank", "text": "  "}], Scored(), KeepLong(least=0))
    table = pq.read_table(tmp_path / "c" / provenance.FILE)
    assert table.column_names == ["id", "domain", "characters", "origin", "written", "dropped", "reason",
                                  "score", "partner"]
    found = {r["id"]: (r["dropped"], r["reason"], r["score"], r["partner"]) for r in table.to_pylist()}
    assert found["d/0000"] == ("scored", "too short", 1.5, None) and found["d/0001"][2] == 2.5
    assert found["d/0003"] == ("scored", "like another", None, "d/0007")
    assert found["d/0004"] == ("scored", "scored", None,
                               None), "where it says nothing, the method with its settings"
    assert found["blank"] == ("corpus", "blank", None, None)
    assert found["d/0005"] == (None, None, None, None) and len(found) == 21


def test_the_usual_reason_is_the_method_with_its_settings(tmp_path: Path) -> None:
    assert provenance.words(KeepLong(least=30)) == "keep_long: least = 30"
    assert provenance.words(Scored()) == "scored"
    build(tmp_path / "c", texts(20), Scored(silent=True, least=3))
    table = pq.read_table(tmp_path / "c" / provenance.FILE)
    assert set(table["reason"].to_pylist()) == {None, "scored: least = 3, silent = True"}


def test_what_two_methods_of_a_name_note_is_not_mixed_up(tmp_path: Path) -> None:
    build(tmp_path / "c", texts(20), Scored(silent=True), Scored())
    table = pq.read_table(tmp_path / "c" / provenance.FILE)
    assert {r["dropped"]: r["reason"] for r in table.to_pylist()
            if r["dropped"]} == {"scored.1": "scored: silent = True"}


def test_outside_of_a_stage_nothing_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    provenance.because(Context(), ["a"], "for nobody")
    assert not list(tmp_path.iterdir())


def reasons(folder: Path) -> dict[str, tuple[str, float | None, str | None]]:
    table = pq.read_table(folder / provenance.FILE).to_pylist()
    return {r["id"]: (r["reason"], r["score"], r["partner"]) for r in table if r["dropped"]}


def test_methods_name_the_document_the_benchmark_and_the_score(tmp_path: Path) -> None:
    from trainwright.data.filter.decontaminate import Decontaminate
    from trainwright.data.filter.filter import Filter
    from trainwright.data.filter.minhash import Minhash
    words = [f"{a} {b} walks slowly over the grey {c} hill" for a in "abc" for b in "defg" for c in "hij"]
    rows = [{"id": f"{i:02d}", "text": text} for i, text in enumerate(words)]
    twins = [{"id": "twin", "text": f"  {words[3].upper()}!"},
             {"id": "leak", "text": "who sat on the mat when the sun went down"}]
    (tmp_path / "quiz.txt").write_text("Who sat on the mat, when the sun went down?")
    quiz = Decontaminate(files=(str(tmp_path / "quiz.txt"),), ngram=6, shortest=4)
    build(tmp_path / "c", [*rows, *twins], Minhash(), quiz, Filter(where="id <> '05'"))
    found = reasons(tmp_path / "c")
    assert found["twin"] == ("near-duplicate", None, "03")
    assert found["leak"] == ("shares runs of words with a benchmark", 5.0, "quiz")
    assert found["05"] == ("filter: where = \"id <> '05'\"", None, None)


def test_selections_give_the_score_that_was_too_low(tmp_path: Path) -> None:
    from trainwright.data.select.best import Best
    from trainwright.data.select.deita import Deita
    place = np.array([[1.0, 0.0], [0.0, 1.0], [0.999, 0.04], [0.6, 0.8]])
    table = frame([{"id": name, "text": name} for name in "abcd"], score=[4.0, 3.0, 2.0, 1.0],
                  embedding=place.tolist())
    ctx = Context(folder=tmp_path / "best")
    (tmp_path / "best").mkdir()
    assert set(told(Best(column="score", count=3).apply(table, ctx))) == {"a", "b", "c"}
    assert provenance._noted(tmp_path / "best") == {"d": ("not among the 3 best by score", 1.0, None)}
    (tmp_path / "deita").mkdir()
    assert set(told(Deita(scores=("score",),
                          count=2).apply(table, Context(folder=tmp_path / "deita")))) == {"a", "b"}
    assert provenance._noted(tmp_path / "deita")["d"] == ("not among the 2 best that differ", 1.0, None)
    (tmp_path / "all").mkdir()
    assert set(told(Deita(scores=("score",),
                          count=4).apply(table, Context(folder=tmp_path / "all")))) == {"a", "b", "d"}
    assert provenance._noted(tmp_path / "all") == {"c": ("near to a document that is kept", 2.0, "a")}
