"""Turns of a conversation."""
from __future__ import annotations

import json

from trainwright.corpus.turns import Turn, turns


def test_turns_by_hand() -> None:
    said = [("system", "be kind"), ("assistant", "hello"), ("user", "one"), ("user", "two"),
            ("assistant", "a"), ("user", "three"), ("tool", "x"), ("assistant", ""), ("assistant", "b"),
            ("user", "open")]
    talk = json.dumps([{"role": role, "content": text} for role, text in said])
    assert turns(talk) == [Turn("one\n\ntwo", "a"), Turn("three", "b")]
    assert turns(None) == [] and turns(json.dumps([{"role": "user", "content": [{"type": "text"}]}])) == []
