"""What counts for the identity of an artifact, and what does not: each thing changed in turn."""
from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from trainwright.core import registry
from trainwright.core.errors import UserError
from trainwright.core.method import Evaluator
from trainwright.core.settings import FilePath
from trainwright.storage import identity

METHOD = '''"""Halves every update."""
from typing import Any, ClassVar

import helper
from helper import by as factor
from parts import shape
from parts.inner import deep
from trainwright.core.method import Update

import claims


class Halve(Update):
    """Halves every update."""

    strength: float = 0.5
    """Factor of every update."""
    example: ClassVar[dict[str, Any]] = {"strength": 0.5}
    needs: ClassVar[tuple[str, ...]] = ()
    beside: ClassVar[dict[str, Any]] = {}

    def update(self, updates, params, state, ctx):
        """New updates."""
        # a comment
        return {n: u * self.strength for n, u in updates.items()}
'''
BESIDE = {
    "helper.py": "by = 2\n",
    "parts/__init__.py": "shape = 1\n",
    "parts/inner.py": "from . import far\ndeep = 3\n",
    "parts/far.py": "here = 4\n",
    "claims.py": "arms = 5\n",
    "other.py": "unused = 6\n",
}


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    for name, text in BESIDE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "mine.py").write_text(METHOD)
    return tmp_path / "mine.py"


def changed(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


# ---- code --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [
    ('"""Halves every update."""\nfrom', '"""Another line."""\nfrom'),
    ("# a comment", "# another"),
    ('    """Factor of every update."""\n', ""),
    ('        """New updates."""\n', ""),
    ("updates, params, state, ctx", "updates,  params,\n               state, ctx"),
    ("0.5}", "0.25}"),
    ("needs: ClassVar[tuple[str, ...]] = ()", 'needs: ClassVar[tuple[str, ...]] = ("peft",)'),
    ("beside: ClassVar[dict[str, Any]] = {}", 'beside: ClassVar[dict[str, Any]] = {"arms": claims.arms}'),
])
def test_what_computes_nothing_is_not_in_the_hash(old: str, new: str, mine: Path) -> None:
    before = identity.code(mine)
    changed(mine, old, new)
    assert identity.code(mine) == before


@pytest.mark.parametrize(("name", "old", "new"), [
    ("mine.py", "float = 0.5", "float = 0.25"),
    ("mine.py", "float = 0.5", "int = 0.5"),
    ("mine.py", "u * self.strength", "u / self.strength"),
    ("mine.py", "strength", "factor"),
    ("mine.py", "(Update)", "(Update, Weigh)"),
    ("helper.py", "2", "3"), ("helper.py", "2", "2.0"), ("helper.py", "2", "'2'"),
    ("parts/__init__.py", "1", "2"), ("parts/inner.py", "3", "4"), ("parts/far.py", "4", "5"),
])
def test_what_computes_is_in_the_hash_wherever_it_stands(name: str, old: str, new: str, mine: Path) -> None:
    before = identity.code(mine)
    changed(mine.parent / name, old, new)
    assert identity.code(mine) != before


def test_a_helper_that_only_a_claim_uses_is_part_of_the_claim(mine: Path) -> None:
    changed(mine, "import claims\n", "from claims import arms\n")
    changed(mine, "beside: ClassVar[dict[str, Any]] = {}",
            'beside: ClassVar[dict[str, Any]] = {"arms": arms}')
    before = identity.code(mine)
    (mine.parent / "claims.py").write_text("arms = 7\n")
    assert identity.code(mine) == before
    changed(mine, "u * self", "arms * u * self")
    used = identity.code(mine)
    (mine.parent / "claims.py").write_text("arms = 8\n")
    assert identity.code(mine) != used


def test_the_files_are_those_that_are_imported(mine: Path) -> None:
    found = {f.relative_to(mine.parent).as_posix() for f in identity.files(mine)}
    assert found == {"mine.py"} | set(BESIDE) - {"other.py"}
    (mine.parent / "mine.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import other\n"
    )
    assert [f.name for f in identity.files(mine)] == ["mine.py"], "what only a type checker sees does not run"


def test_a_user_s_file_imports_what_the_hash_follows(mine: Path, tmp_path: Path) -> None:
    made = registry.create({"use": "./mine.py"}, mine.parent, "here")
    assert made.name == "halve"
    other = tmp_path / "again"
    other.mkdir()
    (other / "helper.py").write_text("by = 40\n")
    (other / "mine.py").write_text(
        '"""."""\nfrom helper import by\nfrom trainwright.core.method import Update\n\n\n'
        'class Mine(Update):\n    strength: float = float(by)\n    """Factor."""\n'
    )
    found: Any = registry.create({"use": "./mine.py"}, other, "here")
    assert found.strength == 40.0, "the helper of another folder's file was taken"


PACKAGE = {
    "__init__.py": "",
    "core/__init__.py": "",
    "core/loop.py": "one = 1\n",
    "lm/__init__.py": "",
    "lm/layers.py": "put = 1\n",
    "lm/rows.py": "from .layers import put\n",
    "data/__init__.py": "",
    "data/_near.py": "import trainwright.lm.rows\n",
    "data/_only.py": "here = 1\n",
    "data/near.py": "from trainwright.core.loop import one\nfrom trainwright.data import _near\n"
                    "from . import _only\n",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in PACKAGE.items():
        (tmp_path / "trainwright" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "trainwright" / name).write_text(text)
    return tmp_path / "trainwright"


@pytest.mark.parametrize(
    ("name", "follows"),
    [
        ("data/_near.py", True),
        ("lm/rows.py", True),
        ("lm/layers.py", True),
        ("data/_only.py", True),
        ("data/__init__.py", True),
        ("core/loop.py", False),
    ],
)
def test_helpers_of_this_package_count_and_the_core_has_a_number(
    name: str, follows: bool, package: Path
) -> None:
    before = identity.code(package / "data" / "near.py")
    with (package / name).open("a") as file:
        file.write("more = 1\n")
    assert (identity.code(package / "data" / "near.py") != before) is follows


@pytest.mark.slow
def test_every_private_half_of_a_method_is_found() -> None:
    """The files beside a method that its name begins with a line for: the algorithm of ``minhash`` was once
    left out."""
    for name, card in registry.cards().items():
        halves = {
            f
            for f in card.file.parent.glob("_*.py")
            if f.stem in card.file.read_text(encoding="utf-8").split()
        }
        assert {f for f in halves if f.name != "__init__.py"} <= set(identity.files(card.file)), name


def test_no_file_is_read_twice(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = identity.code(mine)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: pytest.fail("read again"))
    assert identity.code(mine) == first


def test_a_helper_that_is_no_python_is_reported(mine: Path) -> None:
    (mine.parent / "helper.py").write_text("by = (\n")
    with pytest.raises(UserError, match=r"helper\.py, line 1: this is no Python"):
        identity.code(mine)


# ---- data --------------------------------------------------------------------------------------------


def rewritten(folder: Path) -> None:
    (folder / "a.txt").write_text("one")
    os.utime(folder / "a.txt", (1, 1))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (rewritten, True),
        (lambda f: (f / "a.txt").write_text("two"), False),
        (lambda f: (f / "a.txt").rename(f / "c.txt"), False),
        (lambda f: (f / "sub" / "b.txt").unlink(), False),
        (lambda f: (f / "sub" / "new.txt").write_text(""), False),
        (lambda f: (f.parent / "outside.txt").write_text("else!"), False),
        (lambda f: (f.parent / "far" / "deep.txt").write_text("changed"), True),
    ],
)
def test_the_content_of_a_folder(change: Callable[[Path], object], same: bool, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("one")
    (folder / "sub" / "b.txt").write_text("two")
    (tmp_path / "outside.txt").write_text("out")
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "deep.txt").write_text("deep")
    (folder / "loop").symlink_to(tmp_path)
    (folder / "out").symlink_to(tmp_path / "far")
    before = identity.content(folder)
    change(folder)
    assert (identity.content(folder) == before) is same


def test_the_content_of_a_file_is_what_is_in_it(tmp_path: Path) -> None:
    for name, text in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).write_text(text)
    assert (
        identity.content(tmp_path / "a")
        == identity.content(tmp_path / "b")
        != identity.content(tmp_path / "c")
    )
    (tmp_path / "link").symlink_to(tmp_path / "c")
    assert identity.content(tmp_path / "link") == identity.content(tmp_path / "c"), (
        "a link that was named is followed"
    )
    os.mkfifo(tmp_path / "pipe")
    assert identity.content(tmp_path / "pipe") != identity.content(tmp_path / "a")
    with pytest.raises(UserError, match="none: cannot be read: No such file"):
        identity.content(tmp_path / "none")


@dataclass(frozen=True)
class Group:
    """Settings that several methods share."""

    model: FilePath = ""
    """A file."""


class Reading(Evaluator):
    """Reads files."""

    one: FilePath | None = None
    """A file or none."""
    several: tuple[FilePath, ...] = ()
    """Some files."""
    named: dict[str, FilePath] | None = None
    """Files by name."""
    writer: Group = Group()
    """A group."""
    word: str = "no_file"
    """No file."""


def test_the_files_that_settings_name(tmp_path: Path) -> None:
    assert identity.files_of(Reading(), tmp_path) == []
    method = Reading(one="a", several=("b", "sub/c"), named={"x": "d"}, writer=Group("e"))
    assert identity.files_of(method, tmp_path) == [tmp_path / n for n in ("a", "b", "sub/c", "d", "e")]


def test_some_installed_methods_name_files() -> None:
    kinds = {f[1] for card in registry.cards().values() for f in card.settings}
    assert any("FilePath" in kind for kind in kinds)
