"""Passages, templates, and answers without small talk."""
from __future__ import annotations

from trainwright.lm.writing.prompts import cleaned, filled, passages


def test_passages_are_cut_where_a_reader_would() -> None:
    assert list(passages("One two. Three four. Five.", 16)) == ["One two.", "Three four.", "Five."]
    assert list(passages("a" * 7, 3)) == ["aaa", "aaa", "a"] and not list(passages(" \n ", 3))
    assert list(passages("para one\n\npara two is. x", 16)) == ["para one", "para two is. x"]
    assert list(passages("One two. Three.", 14)) == ["One two.", "Three."]
    assert list(passages("One two. Three. Four.", 15)) == ["One two. Three.", "Four."], "it fits exactly"
    assert list(passages("one two three. Four", 9)) == ["one two", "three.", "Four"]
    assert filled("{text}: {more} {other}", text="{more}", more="x") == "{more}: x {other}"


def test_no_sentence_is_cut_that_fits_into_a_passage() -> None:
    """Six sentences of 45, 45, 40, 80, 25 and 90 characters, in passages of at most 100: an end of a sentence
    counts in the first half too."""
    sentences = [f"{number} {'word ' * length}"[:length - 1].strip().ljust(length - 1, "x") + "."
                 for number, length in enumerate((45, 45, 40, 80, 25, 90))]
    pieces = list(passages(" ".join(sentences), 100))
    within = [[i for i, sentence in enumerate(sentences) if sentence in piece] for piece in pieces]
    assert within == [[0, 1], [2], [3], [4], [5]] and " ".join(pieces) == " ".join(sentences)


def test_what_a_chat_model_says_around_is_taken_off() -> None:
    assert cleaned('Here is a paraphrase:\n"A cat sat."') == "A cat sat."
    assert cleaned("Certainly! I can do that.\nA cat.\n\nLet me know if you want more.") == "A cat."
    for text in ("Here is Rome: a city.", "Sure feet climb. Moss grows.", 'He said "no" and "yes"',
                 '"No," he said, "yes"', ""):
        assert cleaned(text) == text
