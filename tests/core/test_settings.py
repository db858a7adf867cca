"""Settings: what fits a type, what is refused, and in which words."""
from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pytest

from trainwright.core.errors import UserError
from trainwright.core.settings import docs_of, fit, groups_of, make, name_of


@dataclass(frozen=True, kw_only=True)
class Example:
    """Some settings."""

    rank: int
    """How many."""
    rate: float = 0.5
    """How fast, over
    two lines."""
    mode: Literal["a", "b"] = "a"
    shares: tuple[float, ...] = ()
    """Parts."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be 1 or more, not {self.rank}")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Settings that several share."""

    count: int = 1
    """How many."""
    name: str = ""
    """What it is called."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be 1 or more, not {self.count}")


@dataclass(frozen=True, kw_only=True)
class Grouped:
    """Settings with a group in them."""

    group: Group = Group(count=7)
    """A group."""
    maybe: Group | None = None
    """Another, or none."""
    many: tuple[Group, ...] = ()
    """Any number of them."""


FITS: list[tuple[Any, Any, Any]] = [
    (3, int, 3),
    (2e6, int, 2_000_000),
    (3, float, 3.0),
    (True, bool, True),
    ("x", str, "x"),
    ([1], list[int], (1,)),
    ([1, 2], tuple[float, ...], (1.0, 2.0)),
    ([1, "a"], tuple[float, str], (1.0, "a")),
    ([[1], [2.0]], tuple[tuple[int, ...], ...], ((1,), (2,))),
    ({"a": 1}, dict[str, float], {"a": 1.0}),
    (1, int | float, 1),
    (1.0, int | float, 1.0),
    (1.0, float | int, 1.0),
    (1, float | None, 1.0),
    (None, int | None, None),
    (4, int | None, 4),
    ("b", Literal["a", "b"], "b"),
    ("auto", bool | Literal["auto"], "auto"),
    (False, bool | Literal["auto"], False),
    ({"k": [1]}, Any, {"k": [1]}),
]


@pytest.mark.parametrize(("value", "kind", "want"), FITS)
def test_what_fits(value: Any, kind: Any, want: Any) -> None:
    made = fit(value, kind, "here")
    assert made == want and type(made) is type(want)


REFUSED: list[tuple[Any, Any, str]] = [
    (2.5, int, "a whole number, not 2.5"),
    (True, int, "a whole number, not True"),
    (True, float, "a number, not True"),
    ("3", int, "a whole number, not '3'"),
    (1, bool, "true or false, not 1"),
    (3, str, "a string, not 3"),
    ("ab", tuple[str, ...], "a list, not 'ab'"),
    ([], tuple[float, float], r"a list of 2, not \[\]"),
    ([1, 2, 3], tuple[float, float], "a list of 2, not "),
    ([1, "b"], tuple[int, ...], r"here\[1\] must be a whole number"),
    ({"a": "b"}, dict[str, float], "here.a must be a number"),
    ([1], dict[str, int], "a table"),
    ("c", Literal["a", "b"], "one of 'a', 'b', not 'c'"),
    ("x", int | None, "a whole number, not 'x'"),
    ("yes", bool | Literal["auto"], "true or false or one of 'auto', not 'yes'"),
    (float("nan"), float, "nan is none"),
    (float("inf"), int, "a whole number, not inf"),
]


@pytest.mark.parametrize(("value", "kind", "words"), REFUSED)
def test_what_is_refused(value: Any, kind: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as told:
        fit(value, kind, "here")
    assert str(told.value).startswith("here")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ranc": 1}, "unknown setting 'ranc' (did you mean 'rank'?)"),
        ({}, "the setting 'rank' is needed"),
        ({"rank": 0}, "place: rank must be 1 or more, not 0"),
        ({"rank": 1, "mode": "c"}, "place: mode must be one of"),
    ],
)
def test_make_names_the_place(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as told:
        make(Example, given, "place")
    assert words in str(told.value)


def test_made_settings_compare_and_have_docs() -> None:
    assert make(Example, {"rank": 2, "shares": [1, 0]}, "") == Example(rank=2, shares=(1.0, 0.0))
    assert docs_of(Example) == {
        "rank": "How many.",
        "rate": "How fast, over two lines.",
        "mode": "",
        "shares": "Parts.",
    }


def test_a_group_of_settings_is_a_table() -> None:
    made = make(Grouped, {"group": {"name": "x"}, "maybe": {"count": 2}, "many": [{"name": "y"}]}, "place")
    assert made == Grouped(group=Group(count=7, name="x"), maybe=Group(count=2), many=(Group(name="y"),))
    # the field's default, not the group's
    assert make(Grouped, {}, "place").group.count == 7
    assert make(Grouped, json.loads(json.dumps(asdict(made))), "place") == made
    assert make(Grouped, {"group": Group(count=3)}, "place").group == Group(count=3)


@pytest.mark.parametrize(("given", "words"), [
    ({"group": {"nam": "x"}}, "place: group: unknown setting 'nam' (did you mean 'name'?)"),
    ({"group": {"count": "x"}}, "place: group.count must be a whole number, not 'x'"),
    ({"group": {"count": 0}}, "place: group: count must be 1 or more, not 0"),
    ({"group": 3}, "place: group must be a table such as { a = 1 }, not 3"),
    ({"maybe": {"count": 2.5}}, "place: maybe.count must be a whole number, not 2.5"),
    ({"maybe": "x"}, "place: maybe must be a table"),
    ({"many": [{}, {"count": True}]}, "place: many[1].count must be a whole number, not True")])
def test_errors_within_a_group_name_its_place(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as told:
        make(Grouped, given, "place")
    assert str(told.value).startswith(words)


def test_a_group_is_documented_field_by_field() -> None:
    assert docs_of(Grouped) == {
        "group": "A group.",
        "group.count": "How many.",
        "group.name": "What it is called.",
        "maybe": "Another, or none.",
        "maybe.count": "How many.",
        "maybe.name": "What it is called.",
        "many": "Any number of them.",
    }
    assert groups_of(Grouped) == {
        "group": (
            ("group.count", "int", "7", "How many."),
            ("group.name", "str", "''", "What it is called."),
        ),
        "maybe": (
            ("maybe.count", "int", "1", "How many."),
            ("maybe.name", "str", "''", "What it is called."),
        ),
    }
    assert (
        name_of(Group) == name_of(Group | None) == "a table"
        and name_of(tuple[Group, ...]) == "a list of a table"
    )


def test_types_in_words() -> None:
    assert [
        name_of(k) for k in (int, float | None, tuple[str, ...], dict[str, int], bool | Literal["auto"])
    ] == ["a whole number", "a number", "a list of a string", "a table", "true or false or one of 'auto'"]
