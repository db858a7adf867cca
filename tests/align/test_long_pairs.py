"""Pairs of a short passage and the whole text: who reads what, and what the reference is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainwright.align import _drawn
from trainwright.align.long_pairs import LongPairs
from trainwright.check import documents
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.selecting import columns


class Talker:
    """Says how many words it has read; asked for a question, it asks for the first."""

    def __init__(self) -> None:
        self.read: list[dict[str, Any]] = []

    def fits(self, turns: Any, tokens: int) -> bool:
        return tokens < 1000

    def answers(self, turns: dict[str, Any], samples: int, *rest: Any) -> dict[str, list[str]]:
        self.read.append(turns)
        said = {name: one[-1]["content"] for name, one in turns.items()}
        return {
            name: [" What is first? " if "Write one" in text else f"{len(text.split())} words"]
            for name, text in said.items()
        }


def made(folder: Path, monkeypatch: Any, **settings: Any) -> tuple[dict[str, dict[str, Any]], Talker]:
    talker = Talker()
    monkeypatch.setattr(_drawn.Writer, "of", classmethod(lambda cls, *rest: talker))
    ctx = Context(folder=folder, inputs={"model": [folder]})
    table = LongPairs(**{"passage": 3, "longest": 6, "domains": ("prose",)} | settings).apply(
        documents.table(), ctx
    )
    rows = columns(table, "id", "origin", "prompt", "chosen", "rejected", "short", "domain").to_pylist()
    assert all((row["short"] is not None) == (row["domain"] == "pairs") for row in rows)
    return {row["origin"]: row for row in rows if row["short"]}, talker


def test_chosen_is_said_of_the_passage_and_rejected_of_the_whole(tmp_path: Path, monkeypatch: Any) -> None:
    found, _ = made(tmp_path, monkeypatch, question="Who?")
    texts = {row["id"]: row["text"] for row in documents.rows() if row["domain"] == "prose"}
    assert found and found.keys() <= texts.keys()
    for name, row in found.items():
        prompt, short, chosen, rejected = (
            json.loads(row[n]) for n in ("prompt", "short", "chosen", "rejected")
        )
        whole, part = (one[0]["content"].removesuffix("\n\nWho?") for one in (prompt, short))
        assert whole == texts[name] and len(whole.split()) >= 6
        assert len(part.split()) == 3 and part in " ".join(whole.split())
        assert chosen == [{"role": "assistant", "content": "4 words"}]
        assert rejected == [{"role": "assistant", "content": f"{len(whole.split()) + 1} words"}]


def test_the_model_asks_the_question_of_the_passage(tmp_path: Path, monkeypatch: Any) -> None:
    found, talker = made(tmp_path, monkeypatch)
    asked = talker.read[0]
    assert all("Write one question" in turns[0]["content"] for turns in asked.values())
    for name, row in found.items():
        assert json.loads(row["prompt"])[0]["content"].endswith("\n\nWhat is first?")
        part = json.loads(row["short"])[0]["content"].removesuffix("\n\nWhat is first?")
        assert asked[name][0]["content"].startswith(part)


def test_what_it_refuses(tmp_path: Path, monkeypatch: Any) -> None:
    for settings in ({"longest": 900}, {"new_tokens": 2000}):
        with pytest.raises(UserError, match="no document that came in has"):
            made(tmp_path, monkeypatch, **settings)
    monkeypatch.setattr(Talker, "answers", lambda self, turns, *rest: {name: ["same"] for name in turns})
    with pytest.raises(UserError, match="the same answer"):
        made(tmp_path / "other", monkeypatch, question="Who?")
    with pytest.raises(ValueError, match="no short part"):
        LongPairs(passage=10, longest=10)
