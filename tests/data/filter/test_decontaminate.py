"""Text of the evaluation is found in the documents, told for each benchmark, and dropped."""
from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import trainwright as tw
from tests.corpus.corpora import build
from tests.data.frames import frame, told
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.data.filter.decontaminate import Decontaminate
from trainwright.life.listener import Listener


class Heard(Listener):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


WORDS = [f"w{i}" for i in range(500)]


def sentence(n: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=n))


def around(part: str, seed: int = 99) -> str:
    """A document in which ``part`` stands between other words."""
    return f"{sentence(50, seed)} {part} {sentence(50, seed + 1)}"


def run(rows: Any, tmp_path: Path, **settings: Any) -> tuple[set[str], Context]:
    ctx = Context(folder=tmp_path / f"scratch{len(list(tmp_path.iterdir()))}", root=tmp_path,
                  inputs=settings.pop("inputs", {}))
    return set(told(Decontaminate(**settings).apply(frame(rows), ctx))), ctx


def number(ctx: Context, name: str) -> float:
    [(value, _)] = ctx.notes[f"decontaminate/{name}"]
    return float(value)


@pytest.fixture
def quiz(tmp_path: Path) -> dict[str, str]:
    """Two benchmarks in files; the texts by name."""
    items = {"long": sentence(30, 1), "other": sentence(40, 2), "short": sentence(9, 3),
             "tiny": sentence(5, 4)}
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps({"question": t}) + "\n" for t in items.values()))
    (tmp_path / "exam.jsonl").write_text(json.dumps({"question": sentence(20, 5)}) + "\n")
    return items


def test_thirteen_words_are_found_and_twelve_are_not(quiz: dict[str, str], tmp_path: Path) -> None:
    words = quiz["long"].split()
    rows = [{"id": "thirteen", "text": around(", ".join(words[7:20]).upper())},
            {"id": "twelve", "text": around(" ".join(words[:12]))},
            {"id": "whole short", "text": around(quiz["short"])},
            {"id": "part of short", "text": around(quiz["short"][:-4])},
            {"id": "tiny", "text": around(quiz["tiny"])}, {"id": "clean", "text": sentence(200, 7)},
            {"id": "empty", "text": ""}]
    kept, ctx = run(rows, tmp_path, files=("quiz.jsonl", "exam.jsonl"), field="question")
    assert kept == {"twelve", "part of short", "tiny", "clean", "empty"}
    assert [number(ctx, f"quiz/{what}")
            for what in ("documents", "found", "texts", "too_short")] == [2, 2, 4, 1]
    assert [number(ctx, f"exam/{what}")
            for what in ("documents", "found", "texts", "too_short")] == [0, 0, 1, 0], "told, too"
    assert ctx.texts["decontaminate/quiz"] == ("2 of 7 documents contaminated; 2 of 4 texts found, 1 too "
                                               "short to look for")


def test_cutting_by_hand(tmp_path: Path) -> None:
    """A hole of 4 characters on either side of each match, with the words that its edges cut through."""
    how = Decontaminate(cut=True, window=4, shortest_piece=5, pieces=2)
    text = "one two three BAD four five six"
    assert how.around(text, [(14, 17)]) == ["one two", "five six"]
    assert how.around(text, [(14, 17), (15, 17)]) == ["one two", "five six"], "matches that overlap"
    assert how.around("BAD one two three", [(0, 3)]) == ["two three"], "at the beginning"
    three = "x " * 9 + "BAD " + "y " * 9 + "BAD " + "z " * 9
    assert how.around(three, [(18, 21), (40, 43)]) == [], "three pieces"
    assert how.around("one BAD two", [(4, 7)]) == [], "too short to be kept"
    loose = Decontaminate(cut=True, window=0, shortest_piece=1)
    assert loose.around("one BAD two", [(4, 7)]) == ["one", "two"]


def test_matches_are_cut_out_with_what_stands_around_them(quiz: dict[str, str], tmp_path: Path) -> None:
    """As in the appendix: 200 characters on either side go, and pieces of 200 characters stay, in the split
    and with the domain of the original."""
    long = f"{sentence(150, 7)} {quiz['long']} {sentence(150, 8)}"
    rows = [{"id": "long", "text": long, "domain": "books", "origin": "root"},
            {"id": "brief", "text": f"so {quiz['other']} it is", "domain": "books"},
            {"id": "clean", "text": sentence(60, 9), "domain": "web"},
            {"id": "talk", "domain": "chat", "messages": [{"role": "user", "content": long}]}]
    ctx = Context(folder=tmp_path / "s", root=tmp_path)
    made = told(Decontaminate(files=("quiz.jsonl",), field="question", cut=True).apply(frame(rows), ctx))
    assert set(made) == {"clean", "long#piece/0", "long#piece/1"}
    first, second = made["long#piece/0"], made["long#piece/1"]
    assert long.startswith(first["text"]) and long.endswith(second["text"])
    hole = long[len(first["text"]):-len(second["text"])]
    assert quiz["long"] in hole and 400 <= len(hole) - len(quiz["long"]) <= 412
    assert first["origin"] == second["origin"] == "root" and first["domain"] == "books"
    again = told(Decontaminate(files=("quiz.jsonl",), field="question").apply(
        frame([{"id": name, "text": row["text"]} for name, row in made.items()]),
        Context(folder=tmp_path / "t", root=tmp_path)))
    assert set(again) == set(made), "nothing of the benchmark is left"
    assert [ctx.notes[f"decontaminate/{what}"][0][0] for what in ("cut", "pieces")] == [1.0, 2.0]
    with pytest.raises(ValueError, match="say one"):
        Decontaminate(cut=True, drop=False)


def test_marking_instead_of_dropping(quiz: dict[str, str], tmp_path: Path) -> None:
    """The column counts the places at which a shared run begins: 15 words share three runs of 13."""
    words = quiz["other"].split()
    rows = [{"id": "a", "text": around(" ".join(words[:15]))}, {"id": "b", "text": around("nothing")}]
    ctx = Context(folder=tmp_path / "scratch", root=tmp_path)
    marked = told(Decontaminate(files=("quiz.jsonl",), field="question", drop=False).apply(frame(rows), ctx))
    assert {i: row["contamination"] for i, row in marked.items()} == {"a": 3, "b": 0}
    for least, left in ((3, {"b"}), (4, {"a", "b"})):
        assert run(rows, tmp_path, files=("quiz.jsonl",), field="question", least=least)[0] == left


def test_documents_kept_back_are_looked_for(tmp_path: Path) -> None:
    """A corpus of 40 documents; those kept back, planted in a table, are found, those for training are
    not."""
    from trainwright.corpus.tokens import open_corpus
    texts = {f"{i:02d}": sentence(40, 1000 + i) for i in range(40)}
    rows = [{"id": i, "text": text, "domain": "prose" if int(i) % 2 else "code"} for i, text in texts.items()]
    build(tmp_path / "corpus", rows, tune=0.1, test=0.2)
    held = {i for split in ("tune", "test") for i in open_corpus(tmp_path / "corpus").select(split).id}
    planted = [{"id": i, "text": around(" ".join(text.split()[10:30]))} for i, text in texts.items()]
    for role in ("data", "target"):
        kept, ctx = run(planted, tmp_path, inputs={role: [tmp_path / "corpus"]})
        assert set(texts) - kept == held and held
        assert sum(number(ctx, f"{role}/{d}/found") for d in ("code", "prose")) == len(held)


def test_the_artifact_and_the_log_tell(quiz: dict[str, str], tmp_path: Path) -> None:
    """Of a recipe: counts among the figures, sentences among the texts of the manifest, and in what is
    said."""
    rows = [{"text": sentence(60, 200 + i)} for i in range(10)] + [{"text": around(quiz["long"])}]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    methods = [{"use": "text", "paths": [str(tmp_path / "web.jsonl")]},
               {"use": "decontaminate", "files": [str(tmp_path / "quiz.jsonl")], "field": "question"}]
    recipe = tw.load({"stage": [{"name": "web", "kind": "corpus", "vocab_size": 300, "methods": methods}]})
    heard = Heard()
    made = tw.run(recipe, tmp_path / "store", heard)["web"]
    sentence_told = "1 of 11 documents contaminated; 1 of 4 texts found, 1 too short to look for"
    assert made.figures["notes"]["decontaminate/quiz/documents"] == 1
    assert made.manifest["texts"] == {"decontaminate/quiz": sentence_told}
    assert f"decontaminate/quiz: {sentence_told}" in heard.said


def test_mistakes_are_told(quiz: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("only three words")
    for files, message in (((), "nothing to compare with"), (("quiz.jsonl",), "no column 'text'"),
                           (("none.jsonl",), "no file or folder"), (("short.txt",), "shortest = 8 words")):
        with pytest.raises(UserError, match=message):
            run([{"text": "a"}], tmp_path, files=files)
    with pytest.raises(ValueError, match="shortest must be from 1 to ngram"):
        Decontaminate(ngram=5)
    before = Decontaminate(files=("quiz.jsonl",)).depends(tmp_path)
    (tmp_path / "quiz.jsonl").write_text("{}")
    after = Decontaminate(files=("quiz.jsonl",)).depends(tmp_path)
    assert after != before, "another benchmark is another corpus"
