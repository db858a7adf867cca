"""Passages, templates, and answers without small talk."""
from __future__ import annotations

from trainwright.lm.writing.prompts import cleaned, filled, passages


def test_passages_are_cut_where_a_reader_would() -> None:
    assert list(passages("One two. Three four. Five.", 16)) == ["One two.", "Three four.", "Five."]
    assert list(passages("a" * 7, 3)) == ["aaa", "aaa", "a"] and not list(passages(" \n ", 3))
    assert list(passages("para one\n\npara two is. x", 16)) == ["para one", "para two is. x"]
    assert filled("{text}: {more} {other}", text="{more}", more="x") == "{more}: x {other}"


def test_what_a_chat_model_says_around_is_taken_off() -> None:
    assert cleaned('Here is a paraphrase:\n"A cat sat."') == "A cat sat."
    assert cleaned("Certainly! I can do that.\nA cat.\n\nLet me know if you want more.") == "A cat."
    for text in ("Here is Rome: a city.", "Sure feet climb. Moss grows.", 'He said "no" and "yes"',
                 '"No," he said, "yes"', ""):
        assert cleaned(text) == text
