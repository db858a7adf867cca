"""What a document asks: the prompt of a pair, a conversation up to its last answer, a plain text."""
from __future__ import annotations

import json
from typing import Any

import pytest

from trainwright.check import tiny
from trainwright.core.errors import UserError
from trainwright.lm.asking import asked

TURNS = [{"role": "user", "content": "how many"}, {"role": "assistant", "content": "apples"},
         {"role": "user", "content": "or what"}, {"role": "assistant", "content": "today"}]


def row(**given: Any) -> dict[str, Any]:
    return {"id": "one", "text": "", "messages": None, "prompt": None} | given


def test_what_is_asked() -> None:
    model, tokenizer = tiny.model(), tiny.tokenizer()
    found = asked(row(messages=json.dumps(TURNS), text="all of it"), model, tokenizer, "test")
    said = tokenizer.decode(found.ids)
    assert found.text == "or what" and "apples" in said and "today" not in said
    assert said == tokenizer.apply_chat_template(TURNS[:3], add_generation_prompt=True, tokenize=False)
    pair = asked(row(prompt=json.dumps(TURNS[:3]), messages="[]"), model, tokenizer, "test")
    assert pair == found
    plain = asked(row(text="how many"), model, tokenizer, "test")
    assert plain.text == "how many" and tokenizer.decode(plain.ids, skip_special_tokens=True) == "how many"
    assert asked(row(prompt=json.dumps("how many")), model, tokenizer, "test") == plain
    with pytest.raises(UserError, match="test: the document 'one' asks nothing"):
        asked(row(messages=json.dumps(TURNS[1:2])), model, tokenizer, "test")
