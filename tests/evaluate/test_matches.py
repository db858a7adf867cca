"""The form of an answer: all of it, or a part."""
from __future__ import annotations

import pytest

from trainwright.check import tiny
from trainwright.evaluate.matches import Matches


def test_all_of_an_answer_or_a_part_of_it() -> None:
    whole, part = Matches(pattern=r"\d+"), Matches(pattern=r"\d+", whole=False)
    assert [whole.grade("", said) for said in ("42", "it is 42", "")] == [1, 0, 0]
    assert [part.grade("", said) for said in ("42", "it is 42", "")] == [1, 1, 0]


def test_a_pattern_must_be_one() -> None:
    with pytest.raises(ValueError, match="is no regular expression"):
        Matches(pattern="(")


def test_every_answer_matches_anything() -> None:
    ctx = tiny.context(tiny.place())
    told = Matches(pattern=r"(?s).*", domains=("chat",), most=5, new_tokens=2).measure(tiny.model(), ctx)
    assert told["matches"] == 1 and 0.4 < told["matches_low"] < 1
