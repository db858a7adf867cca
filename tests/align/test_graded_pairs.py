"""Pairs of a model's own answers: the best and the worst as a task grades them, and prompts without any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainwright.align import _drawn
from trainwright.align.graded_pairs import GradedPairs
from trainwright.check import documents
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.selecting import columns

TASK = {"use": "matches", "pattern": "yes|maybe"}


class Talker:
    """Says what it was told to, in turn."""

    def __init__(self, said: list[list[str]]) -> None:
        self.said = said

    def answers(self, turns: dict[str, Any], *rest: Any) -> dict[str, list[str]]:
        assert all(one[-1]["role"] == "user" for one in turns.values())
        return {name: self.said[i % len(self.said)] for i, name in enumerate(turns)}


def made(
    folder: Path, monkeypatch: Any, said: list[list[str]], ctx: Context | None = None, **settings: Any
) -> dict[str, Any]:
    monkeypatch.setattr(_drawn.Writer, "of", classmethod(lambda cls, *rest: Talker(said)))
    ctx = ctx or Context()
    ctx.folder, ctx.inputs = folder, {"model": [folder]}
    table = GradedPairs(**{"task": TASK} | settings).apply(documents.table(), ctx)
    rows = columns(table, "id", "origin", "domain", "prompt", "chosen", "rejected").to_pylist()
    assert len(rows) == len(list(documents.rows())) + sum(row["domain"] == "pairs" for row in rows)
    return {row["origin"]: row for row in rows if row["domain"] == "pairs"}


def content(turns: str) -> str:
    return str(json.loads(turns)[0]["content"])


def test_a_pair_is_the_first_of_the_best_and_of_the_worst(tmp_path: Path, monkeypatch: Any) -> None:
    ctx = Context()
    before = {row["id"]: row for row in documents.rows() if row["messages"]}
    found = made(tmp_path, monkeypatch, [["no", "yes", "maybe", "never"], ["yes", "yes"], ["no", "no"]], ctx)
    assert sorted(found) == [name for i, name in enumerate(sorted(before)) if i % 3 == 0]
    for name, row in found.items():
        assert (content(row["chosen"]), content(row["rejected"])) == ("yes", "no")
        assert json.loads(row["prompt"]) == json.loads(before[name]["messages"])[:-1]
    assert ctx.notes["graded_pairs/alike"][0][0] == pytest.approx(1 - len(found) / len(before))


def test_the_documents_answer_stands_in_where_all_are_wrong(tmp_path: Path, monkeypatch: Any) -> None:
    found = made(tmp_path, monkeypatch, [["no", "never"]], gold=True)
    before = {row["id"]: row for row in documents.rows() if row["messages"]}
    assert found.keys() == before.keys()
    for name, row in found.items():
        assert content(row["chosen"]) == json.loads(before[name]["messages"])[-1]["content"]
        assert content(row["rejected"]) == "no"


def test_what_it_refuses(tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(UserError, match="to none of 40 prompts"):
        made(tmp_path / "a", monkeypatch, [["no", "no"]])
    with pytest.raises(UserError, match="grades none of the answers"):
        made(tmp_path / "b", monkeypatch, [["1", "2"]], task={"use": "sums"})
    with pytest.raises(UserError, match="min_p grades no answers"):
        made(tmp_path / "c", monkeypatch, [["1", "2"]], task={"use": "min_p"})
