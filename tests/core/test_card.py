"""Cards: what they say of a class of several kinds, and that they are kept between two processes."""
from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trainwright.core import card, registry, source
from trainwright.core.card import Card
from trainwright.core.method import KINDS

SEVERAL = '''"""Sparse deltas."""
from typing import ClassVar

import trainwright.core.method as kinds
from base import Middle
from trainwright.core.method import Controller, Optimizer, Surgery


class _Part(Surgery):
    """Not the method."""

    layers: str = "*"
    """Which layers."""


class Mine(_Part, Middle, kinds.Objective):
    """Several at once."""

    weight: ClassVar[float] = 2.0
    rank: int = 8
    """How many."""
'''
BASE = '''from trainwright.core.method import Optimizer


class Middle(Optimizer):
    """Between a method and its kind."""

    beta: float = 0.9
    """How slowly."""
'''


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and a process that remembers nothing, of the methods of one place."""
    forget()
    monkeypatch.setattr(registry, "FOLDERS", ("optim",))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "trainwright"
    monkeypatch.undo()
    forget()


def forget() -> None:
    for one in (registry.cards, card.kinds, card.kept_cards, source._parsed):
        one.cache_clear()


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sources that are parsed while a test runs."""
    found: list[str] = []
    parse = ast.parse

    def counted(text: Any, *args: Any, **settings: Any) -> Any:
        found.append(text)
        return parse(text, *args, **settings)
    monkeypatch.setattr(source.ast, "parse", counted)
    return found


def test_a_class_of_several_kinds_is_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SEVERAL)
    (tmp_path / "base.py").write_text(BASE)
    found = card.read(tmp_path / "mine.py", "mine", "")
    assert (
        found.kinds == ("Surgery", "Objective", "Optimizer") and found.kind == "Surgery, Objective, Optimizer"
    )
    assert [f[0] for f in found.fields] == ["rank", "beta", "layers"]
    assert [f[0] for f in found.settings] == ["rank", "beta", "layers", "lr", "params"], (
        "weight is fixed by the class"
    )
    assert [k for k in KINDS if found.is_a(k)] == ["Surgery", "Objective", "Update", "Optimizer"]
    cls = registry.load(tmp_path / "mine.py")
    assert {f[0] for f in found.settings} == {f.name for f in dataclasses.fields(cls)}


def test_kinds_are_those_of_the_module() -> None:
    assert list(card.kinds()) == list(KINDS)
    for name, kind in card.kinds().items():
        above = [c.__name__ for c in KINDS[name].__mro__[1:] if c.__name__ in KINDS]
        assert list(kind.bases) == above


def test_the_second_process_parses_nothing(fresh: Path, parsed: list[str]) -> None:
    first = dict(registry.cards())
    assert len(parsed) > len(first), "each method, and the file of the kinds"
    forget()
    parsed.clear()
    assert registry.cards() == first and all(
        c.settings == first[n].settings for n, c in registry.cards().items()
    )
    assert parsed == []
    assert [f.suffix for f in fresh.iterdir()] == [".json"], "nothing half-written is left"


def kept(fresh: Path) -> Path:
    registry.cards()
    (file,) = fresh.iterdir()
    forget()
    return file


def test_a_source_that_changed_is_read_again(fresh: Path, parsed: list[str]) -> None:
    file = kept(fresh)
    told = json.loads(file.read_text())
    (name,) = [n for n in told["cards"] if n.endswith("/adamw.py")]
    told["cards"][name]["files"][name][1] += 1
    told["cards"]["/nowhere/gone.py"] = told["cards"][name]
    file.write_text(json.dumps(told))
    parsed.clear()
    assert registry.cards()["adamw"].kinds == ("Optimizer",)
    assert len(parsed) == 1 and "class Adamw" in parsed[0].replace("AdamW", "Adamw")
    assert "/nowhere/gone.py" not in json.loads(file.read_text())["cards"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"made_by": 1}',
        "\xff\xfe",
        '{"made_by": MADE, "kinds": 3}',
        '{"made_by": MADE, "kinds": {"Update": {"bases": 1, "fields": []}}, "cards": []}',
    ],
)
def test_a_cache_that_cannot_be_read_is_none(text: str, fresh: Path) -> None:
    whole = dict(registry.cards())
    file = kept(fresh)
    file.write_text(text.replace("MADE", json.dumps(card._made_by())), encoding="latin-1")
    assert registry.cards() == whole
    forget()
    assert registry.cards() == whole and json.loads(file.read_text())["cards"]


@pytest.mark.parametrize("broken", ["kinds", "fields", "files", "fixed"])
def test_a_kept_card_that_is_wrong_is_made_again(broken: str, fresh: Path) -> None:
    whole = dict(registry.cards())
    file = kept(fresh)
    told = json.loads(file.read_text())
    for one in told["cards"].values():
        one[broken] = 7
    file.write_text(json.dumps(told))
    assert registry.cards() == whole


def test_a_cache_that_cannot_be_written_is_no_error(fresh: Path) -> None:
    fresh.parent.write_text("a file where the folder would be")
    assert "adamw" in registry.cards()


def test_without_a_home_nothing_is_kept(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert card._place() is None and "adamw" in registry.cards() and not fresh.exists()


def test_a_card_compares_by_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(BASE.replace("Middle", "Mine"))
    one, two = (card.read(tmp_path / "mine.py", "mine", "") for _ in range(2))
    assert isinstance(one, Card) and one == two


@pytest.mark.parametrize(("written", "shown"), [
    ("0.5", "0.5"), ("dataclasses.field(default_factory=dict)", "{}"), ("field(default_factory=tuple)", "()"),
    ("field(default_factory=lambda: Writer(endpoint='x'))", "Writer(endpoint='x')"),
    ("field(default=3)", "3"), ("field(default_factory=Writer)", "Writer()")])
def test_a_default_is_shown_as_a_person_writes_it(written: str, shown: str) -> None:
    assert card._default(ast.parse(written, mode="eval").body) == shown


def test_no_setting_shows_how_its_default_is_made() -> None:
    assert not [(c.name, s[0]) for c in registry.cards().values() for s in c.settings if "field(" in s[2]]
