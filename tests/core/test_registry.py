"""The registry: cards that agree with their classes, methods of one's own, and hints for wrong names."""
from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

from trainwright.core import card as card_module
from trainwright.core import registry, source
from trainwright.core.card import read
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
    assert all(issubclass(cls, KINDS[kind]) for kind in card.kinds) and card.default is cls.default
    assert [k for k in KINDS if card.is_a(k)] == [k for k, kind in KINDS.items() if issubclass(cls, kind)]
    fields = {f.name: f for f in dataclasses.fields(cls)}
    own = {f[0]: f for f in card.settings}
    assert set(own) == set(fields)
    for key, (_, _, default, doc) in own.items():
        assert doc == docs_of(cls)[key] and bool(default) == (
            fields[key].default is not dataclasses.MISSING
            or fields[key].default_factory is not dataclasses.MISSING
        )


def test_methods_of_several_kinds_are_listed_under_each() -> None:
    several = {n: c.kinds for n, c in registry.cards().items() if len(c.kinds) > 1}
    assert several["spiel"] == ("Surgery", "Optimizer") and several["r_amt"] == (
        "Surgery",
        "Objective",
        "Update",
    )
    assert {"spiel", "sara", "sst", "increlora", "r_amt", "adamw"} <= {
        n for n, c in registry.cards().items() if c.is_a("Update")
    }


def test_a_method_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    made = registry.create({"use": "./mine.py", "by": 1}, tmp_path, "here")
    assert isinstance(made, Update) and made.name == "halve"
    assert made == registry.create({"use": "mine.py", "by": 1.0}, tmp_path, "")
    card = read(tmp_path / "mine.py", "halve", "")
    assert (card.kinds, card.summary) == (("Update",), "Halves every update. Nobody's paper.")
    assert card.fields == (("by", "float", "0.5", "Factor of every update."),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class Halve(\n", "mine.py, line 1: this is no Python"),
        ("import nothing_of_this_name\n", "mine.py, line 1: ModuleNotFoundError: No module named"),
        ("x = 1\n\n\nx.y\n", "mine.py, line 4: AttributeError"),
        (
            "import sys\nsys.exit(0)\n",
            "mine.py, line 2: a method, or a library, ended the program (sys.exit(0))",
        ),
        ("raise SystemExit\n", "mine.py, line 1: a method, or a library, ended the program"),
        ("x = 1\n", "must define one method, and it defines 0"),
        (MINE + MINE.split("Update\n", 1)[1].replace("Halve", "Quarter"), "it defines 2: Halve, Quarter"),
        ("# \xff\n", "not a Python file in UTF-8"),
    ],
)
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


def test_reading_cards_imports_no_method() -> None:
    for module in (registry, card_module, source):
        tree = ast.parse(Path(str(module.__file__)).read_text())
        top = {n.module for n in tree.body if isinstance(n, ast.ImportFrom)}
        assert not any("method" in str(m) for m in top), (
            "a kind is imported at the head: listing would import torch"
        )


def test_defaults_are_marked_by_the_methods() -> None:
    chosen = {kind: registry.default_of(kind) for kind in ("Data", "Optimizer", "Surgery")}
    assert chosen["Data"] and chosen["Optimizer"] and chosen["Surgery"] is None
    marked = [kind for c in registry.cards().values() if c.default for kind in c.kinds]
    assert len(marked) == len(set(marked)), "two methods stand in for one kind"
