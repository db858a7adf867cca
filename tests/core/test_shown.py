"""Foreign text: nothing in it acts on what it is shown in, and a value takes a line at most."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from trainwright.core.shown import BRIEF, brief, cut, plain


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("grün 麦 👩‍👧 [x] :bomb:", "grün 麦 👩‍👧 [x] :bomb:"), ("\x1b[31mred", "\\x1b[31mred"),
        ("a\x07\x00b", "a\\x07\\x00b"), ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\u202eabc\u2066", "\\u202eabc\\u2066"), ("\x9b2J", "\\x9b2J"), ("\udcff", "\\udcff"),
    ],
)
def test_what_is_unseen_is_written_out(text: str, want: str) -> None:
    assert plain(text) == want and plain(want) == want


def test_lines_may_stay() -> None:
    assert plain("a\n\tb\r\x1b", lines=True) == "a\n\tb\\r\\x1b"


def test_the_middle_is_left_out() -> None:
    assert cut("short", 10) == "short"
    long = cut("begin" + "x" * 500 + "end", 60)
    assert len(long) <= 60 and long.startswith("begin") and long.endswith("end") and "…" in long


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value, {"a": value}]
    return value


WRITTEN: list[tuple[Any, str]] = [
    (3, "3"), (-1.5, "-1.5"), ("x", "'x'"), (True, "True"), (10**400, "a number of 401 digits"),
    (10**400 - 1, "a number of 400 digits"), (-(10**5000), "a number of 5001 digits"),
    (datetime.date(2020, 1, 2), "2020-01-02"), ("\x1b[0m", "'\\x1b[0m'"), ([1, "a"], "[1, 'a']"),
    ({"a": 1}, "{'a': 1}"),
]


@pytest.mark.parametrize("number", range(len(WRITTEN)))  # pytest cannot name 5,001 digits
def test_a_value_is_what_python_writes(number: int) -> None:
    value, want = WRITTEN[number]
    assert brief(value) == want


@pytest.mark.parametrize(
    "value", ["x" * 10**6, nested(900), [1] * 10**5, {str(i): i for i in range(1000)}, [10**5000] * 9]
)
def test_any_value_fits_into_a_line(value: Any) -> None:
    assert len(brief(value)) <= 2 * BRIEF
