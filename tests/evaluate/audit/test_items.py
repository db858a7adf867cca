"""Items from a file, and one sentence for each way in which a line is none."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainwright.core.errors import UserError
from trainwright.evaluate.audit._items import Item, read


def test_the_answer_is_a_place_a_letter_or_the_choice(tmp_path: Path) -> None:
    rows = [{"question": "q", "choices": ["x", "y"], "answer": a} for a in (1, "B", "y")]
    (tmp_path / "i.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    assert read("i.jsonl", tmp_path, "who") == [Item("q", ("x", "y"), 1)] * 3
    assert read("i.jsonl", tmp_path, "who")[0].text == "q\nx\ny"


@pytest.mark.parametrize(("line", "why"), [
    ("{", "line 1 is no JSON"), ("[" * 100_000, "line 1 is no JSON"),
    ('{"question": "q", "choices": ["x", "y"], "answer": []}', r"answer = \[\] is none of its 2 choices"),
    ("[1]", "is no item"), ('{"question": "q", "choices": ["x"]}', "is no item"),
    ('{"question": "q", "choices": ["x", "y"], "answer": 2}', "answer = 2 is none of its 2 choices"),
    ('{"question": "q", "choices": ["x", "y"], "answer": true}', "answer = True"), ("", "has no items")])
def test_what_is_no_item(tmp_path: Path, line: str, why: str) -> None:
    (tmp_path / "i.jsonl").write_text(line)
    with pytest.raises(UserError, match=why):
        read("i.jsonl", tmp_path, "who")
    with pytest.raises(UserError, match="cannot be read"):
        read("none.jsonl", tmp_path, "who")
