"""Conversations made of docstrings: whole paragraphs, no repeats, the same each time."""
from __future__ import annotations

import json

import pytest

from trainwright.core.context import Context
from trainwright.corpus.documents import empty
from trainwright.data.sources.python_questions import PythonQuestions, opening, question


def test_an_answer_is_the_opening_of_a_docstring_without_its_sections():
    doc = "Return the middle value.\nIt is robust.\n\nMore of it.\n\nArgs:\n    data: numbers."
    assert opening(doc, 600) == "Return the middle value. It is robust.\n\nMore of it."
    assert opening(doc, 45) == "Return the middle value. It is robust."
    assert opening("First sentence. Second one that is long.", 20) == "First sentence."


def test_a_question_names_what_it_asks_about():
    asked = question("json/__init__.py", "JSONDecoder.decode:2")
    assert "json.JSONDecoder.decode" in asked
    assert asked == question("json/__init__.py", "JSONDecoder.decode:2")


@pytest.mark.slow
def test_conversations_are_the_same_each_time_and_never_repeat():
    tables = [PythonQuestions(most=30).apply(empty(), Context()).to_pydict() for _ in range(2)]
    assert tables[0]["messages"] == tables[1]["messages"]
    assert len(tables[0]["id"]) == len(set(tables[0]["id"])) == 30
    for text in tables[0]["messages"]:
        user, assistant = json.loads(text)
        assert user["role"] == "user" and assistant["role"] == "assistant"
        assert 40 <= len(assistant["content"]) <= 600


def test_numbers_must_be_positive():
    with pytest.raises(ValueError, match="most"):
        PythonQuestions(most=0)
