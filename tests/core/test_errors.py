"""Messages: one line, nothing unseen, no longer than anybody reads; and what ends a program from within."""

from __future__ import annotations

import sys

import pytest

from trainwright.core.errors import LISTED, LONGEST, UserError, located, suggest


def test_a_message_is_one_line_without_anything_unseen() -> None:
    assert str(UserError("a\x1b[31m\n  b\n")) == "a\\x1b[31m b"
    assert len(str(UserError("x" * 10**6))) <= LONGEST


def test_a_place_is_named_once() -> None:
    with pytest.raises(UserError, match=r"^here: wrong$"), located("here"):
        raise UserError("wrong")
    with pytest.raises(UserError, match=r"^here: wrong$"), located("here"):
        raise UserError("here: wrong")


def test_what_ends_the_program_is_a_mistake_with_a_place() -> None:
    with (
        pytest.raises(UserError, match=r"^here: a method, or a library, ended the program \(sys.exit\(0\)\)"),
        located("here"),
    ):
        sys.exit(0)


def test_the_nearest_word_or_some_of_those_there_are() -> None:
    assert suggest("lrr", ["lr", "rank"]) == " (did you mean 'lr'?)"
    assert suggest("zzz", ["a", "b"]) == " (known: a, b)" and suggest("zzz", []) == ""
    many = suggest("zzz", [f"word{i:04}" for i in range(500)])
    assert len(many) < LISTED + 30 and "more)" in many
    assert suggest("w" * 10**6, ["word"]) == " (known: word)"
