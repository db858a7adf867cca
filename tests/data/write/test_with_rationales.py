"""Reasons beside questions: a document of their own, and those without any are left alone."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.frames import frame, told
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.data.write.with_rationales import WithRationales


def talk(name: str, **metadata: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": f"What of {name}?"}, {"role": "assistant", "content": "So."}]
    return {"id": name, "text": f"What of {name}?\n\nSo.", "domain": "web", "messages": turns,
            "metadata": metadata}


def test_a_question_with_reasons_has_a_document_that_asks_for_them(tmp_path: Path) -> None:
    ctx = Context(folder=tmp_path)
    documents = frame([talk("a", rationale="Because."), talk("b")])
    made = told(WithRationales(prefix="why: ").apply(documents, ctx))
    assert set(made) == {"a", "b", "a#explain"}
    new = made["a#explain"]
    assert (new["domain"], new["origin"]) == ("explain", "a")
    assert json.loads(new["messages"]) == [{"role": "user", "content": "why: What of a?"},
                                           {"role": "assistant", "content": "Because."}]
    assert json.loads(made["a"]["messages"]) == talk("a")["messages"]
    assert ctx.notes["with_rationales/left_out"] == [(1.0, 1.0)]


def test_no_reasons_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has reasons as 'rationale'"):
        told(WithRationales().apply(frame([talk("a")]), Context(folder=tmp_path)))
