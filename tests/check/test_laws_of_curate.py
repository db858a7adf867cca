"""Curating methods that users write beside their recipes: each way to break a law is caught by that law."""
from __future__ import annotations

from pathlib import Path

import pytest

from trainwright.check import battery, laws_of_curate
from trainwright.check.laws import LAWS
from trainwright.check.subject import Subject
from trainwright.core.method import Curate

HEAD = '''"""What it does, in one line."""
import daft

from trainwright.core.method import Curate


class Mine(Curate):
    """."""

    def apply(self, documents, ctx):
'''
WRITES = """        from trainwright.corpus.selecting import columns
        from trainwright.corpus.sources import document, table, union
        ids = columns(documents, "id")["id"].to_pylist()
        rows = [document(id=NAME, text="again", domain="d", source="s", origin=ORIGIN) for id in ids]
        return union(documents, table("mine", [rows.__iter__]))
"""
EDITS = """        from trainwright.corpus.editing import edit
        return edit(documents, str.upper)
"""
BROKEN = {
    "rows_are_the_same_twice": {
        "gives other rows": """        SEEN.append(1)
        return documents.limit(10 * len(SEEN))


SEEN = []
""",
        "without text": """        return documents.exclude("text")
"""},
    "ids_stay_unique": {
        "documents that come out have one id": """        return documents.union_all(documents.limit(5))
"""},
    "the_order_of_rows_does_not_matter": {
        "gives other documents": """        return documents.limit(10)
""",
        "another score": """        from trainwright.corpus.selecting import attach, columns
        import pyarrow as pa
        ids = columns(documents, "id")["id"]
        return attach(documents, pa.table({"id": ids, "score": [float(i) for i in range(len(ids))]}))
"""},
    "rows_stream_through_it": {
        "apply reads documents": """        return documents.collect()
"""},
    "what_it_edits_is_learned": {
        "edit documents with": """        return documents.with_column("text", daft.col("text").upper())
""",
        "the document 'chat/": """        messages = daft.col("messages").replace("apples", "pears")
        return documents.with_column("messages", messages)
"""},
    "what_it_writes_has_its_origin": {
        "with the origin None": WRITES.replace("NAME", "f'{id}#'").replace("ORIGIN", "None"),
        "with the origin 'myself'": WRITES.replace("NAME", "f'{id}#'").replace("ORIGIN", "'myself'")}}
CASES = [(law, words, text) for law, ways in BROKEN.items() for words, text in ways.items()]
OURS = [law for law in LAWS if law.check.__module__ == laws_of_curate.__name__]


def problem(law: str, text: str, folder: Path) -> str:
    file = folder / "mine.py"
    file.write_text(HEAD + text)
    (found,) = [one for one in OURS if one.name == law]
    return battery.problem(found, Subject(str(file), folder))


@pytest.mark.parametrize(("law", "words", "text"), CASES, ids=[f"{law}-{words}" for law, words, _ in CASES])
def test_a_broken_method_is_caught(law: str, words: str, text: str, tmp_path: Path) -> None:
    assert words in problem(law, text, tmp_path)


@pytest.mark.parametrize("law", [law.name for law in OURS])
@pytest.mark.parametrize("text", [EDITS, WRITES.replace("NAME", "f'{id}#'").replace("ORIGIN", "id")])
def test_a_sound_method_passes(law: str, text: str, tmp_path: Path) -> None:
    why = problem(law, text, tmp_path)
    assert not why or (law == "rows_stream_through_it" and text != EDITS), why


def test_every_law_has_been_broken() -> None:
    assert set(BROKEN) == {law.name for law in OURS} and all(law.kinds == (Curate,) for law in OURS)


def test_the_rows_are_what_a_corpus_may_hold() -> None:
    """A law whose own documents broke it would blame every method."""
    found = laws_of_curate.table(list(laws_of_curate.rows()), []).to_arrow().to_pylist()
    assert len({row["id"] for row in found}) == len(found)
    assert sum(row["messages"] is not None for row in found) == 40
    assert sum(row["chosen"] is not None for row in found) == 42
