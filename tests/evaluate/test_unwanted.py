"""Lines are unwanted where a pattern finds something in them; every text is begun by a document."""

from __future__ import annotations

import pytest

from trainwright.check import tiny
from trainwright.evaluate.unwanted import Unwanted


def test_lines_are_counted_and_empty_ones_are_not() -> None:
    one = Unwanted(patterns=(r"^\s*>>> ", "secret"))
    assert one.counted("a\n\n  >>> b\nno secret\n>>>c\n") == (2, 4)
    assert one.counted("\n \n") == (0, 0)


def test_patterns_must_be_some() -> None:
    with pytest.raises(ValueError, match="is no regular expression"):
        Unwanted(patterns=("(",))
    with pytest.raises(ValueError, match="names nothing"):
        Unwanted(patterns=())


def test_everything_or_nothing_is_unwanted() -> None:
    ctx = tiny.context(tiny.place())
    model = tiny.model()
    every = Unwanted(patterns=(r"\S",), domains=("prose",), most=4, prompt=3, new_tokens=8)
    told = every.measure(model, ctx)
    assert told["unwanted"] == 1 and told["unwanted_texts"] > 0.5
    none = Unwanted(patterns=("[^\\s\\S]",), domains=("prose",), most=4, prompt=3, new_tokens=8)
    assert none.measure(model, ctx)["unwanted"] == 0
