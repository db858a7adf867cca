"""Syntax trees and the files behind imports, without running any."""
from __future__ import annotations

import ast
import sysconfig
from pathlib import Path

import pytest

from trainwright.core import source
from trainwright.core.errors import UserError

TREE = (
    "house/__init__.py",
    "house/one.py",
    "house/two/__init__.py",
    "house/two/deep.py",
    "beside.py",
    "folder/inner.py",
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in TREE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("file", "level", "module", "name", "found"),
    [
        ("house/two/deep.py", 0, "house.one", "", ["house/__init__.py", "house/one.py"]),
        ("house/two/deep.py", 0, "house", "one", ["house/__init__.py", "house/one.py"]),
        ("house/two/deep.py", 1, "", "other", ["house/two/__init__.py"]),
        ("house/two/deep.py", 2, "one", "x", ["house/one.py"]),
        ("house/two/deep.py", 2, "", "one", ["house/__init__.py", "house/one.py"]),
        ("house/one.py", 0, "beside", "", []),
        ("beside.py", 0, "folder.inner", "x", ["folder/inner.py"]),
        (
            "beside.py",
            0,
            "house.two",
            "deep",
            ["house/__init__.py", "house/two/__init__.py", "house/two/deep.py"],
        ),
        ("beside.py", 0, "torch", "nn", []),
        ("beside.py", 9, "x", "y", []),
    ],
)
def test_imports_are_followed_to_their_files(file: str, level: int, module: str, name: str, found: list[str],
                                             place: Path) -> None:
    folder = place if file == "beside.py" else None
    files = source.resolve(place / file, level, module, name, folder)
    assert [f.relative_to(place).as_posix() for f in files] == found


def test_this_package_is_found_from_anywhere(place: Path) -> None:
    files = source.resolve(place / "beside.py", 0, "trainwright.core", "errors", None)
    assert {"trainwright/core/__init__.py", "trainwright/core/errors.py"} <= {
        f.relative_to(source.ROOT.parent).as_posix() for f in files}


def test_what_is_imported() -> None:
    text = ("import a, b.c as d\nfrom . import e\nif TYPE_CHECKING:\n    import f\nelse:\n    import g\n"
            "def h():\n    from ..i import j, k as l\n")
    assert set(source.imports(ast.parse(text))) == {
        (0, "a", ""), (0, "b.c", ""), (1, "", "e"), (0, "g", ""), (2, "i", "j"), (2, "i", "k")}


def test_only_a_user_s_own_file_looks_beside_itself(place: Path) -> None:
    assert source.beside(place / "beside.py") == place
    assert source.beside(source.ROOT / "core" / "loop.py") is None
    assert source.beside(Path(sysconfig.get_path("purelib")) / "other" / "mine.py") is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"x = (\n", "line 1: this is no Python"),
        (b"# \xff\n", "not a Python file in UTF-8"),
        (None, "No such file"),
    ],
)
def test_a_file_that_cannot_be_parsed_is_reported(content: bytes | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "mine.py").write_bytes(content)
    with pytest.raises(UserError, match=words):
        source.parsed(tmp_path / "mine.py")


def test_a_tree_is_parsed_once_and_again_when_the_file_has_changed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("x = 1\n")
    first = source.parsed(tmp_path / "mine.py")
    assert source.parsed(tmp_path / "mine.py") is first
    (tmp_path / "mine.py").write_text("x = 22\n")
    assert ast.unparse(source.parsed(tmp_path / "mine.py")) == "x = 22"
