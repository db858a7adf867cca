"""Lengths and lexical diversity by hand."""
from __future__ import annotations

import pytest

from tests.data.filter.test_score_evol import talk
from tests.data.frames import frame, told
from trainwright.core.context import Context
from trainwright.data.filter.score_wording import ScoreWording, factors, mtld


def test_factors_by_hand() -> None:
    """a b a: 2/3 < 0.72 ends a factor at the third word; what is left, c d c d, ends one at its third, and
    d alone is no part of one. Of a b c a (3/4) a quarter over 0.28 is left."""
    assert factors(iter("aba")) == 1.0 and factors(iter("abacdcd")) == 2.0
    assert factors(iter("abca")) == pytest.approx(0.25 / 0.28)
    assert factors(iter("abc")) == 0.0


def test_mtld_is_the_mean_of_both_directions() -> None:
    """a a b c: forwards one factor (a a) and nothing, 4 words; backwards c b a a, 3/4: 0.25 / 0.28 of one."""
    assert mtld("aabc") == pytest.approx((4 / 1 + 4 / (0.25 / 0.28)) / 2)
    assert mtld("abc") == 3.0, "no repetition: one factor" and mtld("") is None
    assert mtld("") is None


def test_columns_of_conversations_and_texts() -> None:
    rows = frame([{"id": "talk", "messages": talk("abcd", "One two.", "ab", "Two three?")},
                  {"id": "plain", "text": "one one two"}, {"id": "empty", "text": ""}])
    made = told(ScoreWording().apply(rows, Context()))
    names = ("instruction_length", "response_length", "mtld")
    assert [made["talk"][n] for n in names] == [3.0, 9.0, mtld(["one", "two", "two", "three"])]
    assert [made["plain"][n] for n in names] == [None, 11.0, mtld(["one", "one", "two"])]
    assert [made["empty"][n] for n in names] == [None, 0.0, None]
