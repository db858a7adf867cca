"""The registry: cards read without importing, methods of one's own, and a fingerprint that follows what is imported."""
from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

from trainwright.core import registry
from trainwright.core.errors import UserError
from trainwright.core.method import KINDS, Update
from trainwright.core.settings import docs_of

MINE = '''"""Halves every update. Nobody's paper."""
from trainwright.core.method import Update


class Halve(Update):
    """Halves every update."""

    by: float = 0.5
    """Factor of every update."""

    def update(self, updates, params, state, ctx):
        return {n: u * self.by for n, u in updates.items()}
'''


@pytest.mark.parametrize("name", sorted(registry.cards()))
def test_the_card_is_what_the_class_says(name: str) -> None:
    card, cls = registry.cards()[name], registry.find(name)
    assert KINDS[card.kind] in cls.__bases__ and card.default is cls.default
    fields = {f.name: f for f in dataclasses.fields(cls)}
    own = {f[0]: f for f in (*registry.kind_fields(card.kind), *card.fields)}
    assert set(own) == set(fields)
    for key, (_, _, default, doc) in own.items():
        assert doc == docs_of(cls)[key] and bool(default) == (fields[key].default is not dataclasses.MISSING
                                                              or fields[key].default_factory is not dataclasses.MISSING)


def test_a_method_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    made = registry.create({"use": "./mine.py", "by": 1}, tmp_path, "here")
    assert isinstance(made, Update) and made.name == "halve"
    assert made == registry.create({"use": "mine.py", "by": 1.0}, tmp_path, "")
    card = registry.read_card(tmp_path / "mine.py", "halve", "")
    assert (card.kind, card.summary) == ("Update", "Halves every update. Nobody's paper.")
    assert card.fields == (("by", "float", "0.5", "Factor of every update."),)


@pytest.mark.parametrize(("text", "words"), [
    ("class Halve(\n", "mine.py, line 1: this is no Python"),
    ("import nothing_of_this_name\n", "mine.py, line 1: ModuleNotFoundError: No module named"),
    ("x = 1\n\n\nx.y\n", "mine.py, line 4: AttributeError"), ("x = 1\n", "must define one method, and it defines 0"),
    (MINE + MINE.split("Update\n", 1)[1].replace("Halve", "Quarter"), "it defines 2: Halve, Quarter"),
    ("# \xff\n", "not a Python file in UTF-8")])
def test_a_file_that_is_wrong_is_told_with_its_line(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(text, encoding="latin1")
    with pytest.raises(UserError) as told:
        registry.create({"use": "./mine.py"}, tmp_path, "here")
    assert words in str(told.value) and str(tmp_path / "mine.py") in str(told.value)


def test_names_are_helped_along() -> None:
    with pytest.raises(UserError, match=r"here: there is no method 'adamv' \(did you mean 'adamw'\?\)"):
        registry.create({"use": "adamv"}, Path(), "here")
    with pytest.raises(UserError, match=r"here \(adamw\): unknown setting 'lrr' \(did you mean 'lr'\?\)"):
        registry.create({"use": "adamw", "lrr": 1}, Path(), "here")
    with pytest.raises(UserError, match="there is no file"):
        registry.create({"use": "./none.py"}, Path(), "here")


def test_the_fingerprint_follows_imports_beside_the_core(tmp_path: Path) -> None:
    wsd = registry.cards()["wsd"].file
    seen: dict[Path, bytes] = {}
    registry._collect(wsd, seen)
    assert {f.name for f in seen} == {"wsd.py", "_schedule.py"}
    assert registry.fingerprint(wsd) != registry.fingerprint(registry.cards()["cosine"].file)


def test_reading_cards_imports_no_method() -> None:
    tree = ast.parse(Path(registry.__file__).read_text())
    top = {n.module for n in tree.body if isinstance(n, ast.ImportFrom)}
    assert not any("method" in str(m) for m in top), "the registry imports a kind at its head: listing would import torch"


def test_defaults_are_marked_by_the_methods() -> None:
    chosen = {kind: registry.default_of(kind) for kind in ("Data", "Optimizer", "Surgery")}
    assert chosen["Data"] and chosen["Optimizer"] and chosen["Surgery"] is None
    marked = [c.kind for c in registry.cards().values() if c.default]
    assert len(marked) == len(set(marked)), "two methods stand in for one kind"


def test_a_card_read_in_brief_is_the_whole_one() -> None:
    """Parsed up to the first function of its class, a method's file tells what all of it tells."""
    brief = [c for c in registry.cards().values() if registry._head(c.file) is not None]
    assert len(brief) > len(registry.cards()) / 2
    assert all(c == registry.read_card(c.file, c.name, c.folder) for c in brief)


def test_a_setting_behind_a_function_is_read_too(tmp_path: Path) -> None:
    text = '"""Mine."""\nclass Mine(Weigh):\n    """Mine."""\n    by: float = 2.0\n\n    def weigh(self):\n        return 1\n'
    (tmp_path / "mine.py").write_text(text)
    assert registry._head(tmp_path / "mine.py") is not None
    (tmp_path / "mine.py").write_text(text + "\n    late: int = 3\n")
    card = registry.read_card(tmp_path / "mine.py", "mine", "optim", brief=True)
    assert [f[0] for f in card.fields] == ["by", "late"]
