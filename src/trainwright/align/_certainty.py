"""How a model says whether it is sure: what is asked, what it says, and where an answer ends."""
from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

SURE, UNSURE = " I am sure.", " I am unsure."
STOP = "."


def asked(answer: str, question: str) -> str:
    """An answer and the question whether it is sure, as what the assistant has said so far."""
    closed = answer.strip()
    return f"{closed}{'' if closed.endswith(('.', '!', '?')) else STOP} {question}"


def answer_of(said: str, question: str) -> str:
    """The answer in a generated text: up to its first full stop, or to the question whether it is sure."""
    return said.partition(question)[0].partition(STOP)[0].strip()


def known(gold: str, said: str) -> bool:
    """Whether the right answer stands in what was said, letter by letter."""
    return gold.strip().rstrip(STOP) in said


def turns_of(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """The question and the answer of a document that is one question with one answer."""
    turns = json.loads(row["messages"] or "[]")
    if [m["role"] for m in turns] != ["user", "assistant"]:
        return None
    question, answer = (str(m.get("content") or "") for m in turns)
    return (question, answer) if question.strip() and answer.strip() else None
