"""What an artifact depends on beside its settings: the code of its methods, and the files that it reads.

Two things are the same code if they compute the same: formatting, comments, docstrings and the claims of a
paper do not count, and every helper of a method does. Two things are the same data if their bytes are the
same, whenever written.
"""
from __future__ import annotations

import ast
import dataclasses
import hashlib
import os
import stat
import typing
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainwright.core import source
from trainwright.core.errors import UserError
from trainwright.core.settings import FILE, hints_of

if TYPE_CHECKING:
    from trainwright.core.method import Method

FORMAT = 3
"""Number of everything that no method's imports reach: the loop, the stages, the corpus. Raised when results
change."""
CLAIMS = ("example", "beside", "needs", "expected_failures")
"""Class attributes that say how a method is tested, and change nothing of what it does."""


# ---- code --------------------------------------------------------------------------------------------


def code(file: Path) -> str:
    """A hash of a method's file and of all that it imports from this package (but for the core, see
    ``FORMAT``), from its own package and, where it is a user's own, from its folder.

    Raises:
        UserError: one of these files is not Python.
    """
    digest = hashlib.sha256()
    for one in sorted({_syntax(f, source.stamp(f)).digest for f in files(file)}):
        digest.update(one.encode())
    return digest.hexdigest()[:16]


def files(file: Path) -> list[Path]:
    """That file and its helpers, and the helpers of these, sorted."""
    first = file.resolve()
    folder, found, todo = source.beside(first), {first}, [first]
    while todo:
        at = todo.pop()
        read = _reached if folder is None else _reached.__wrapped__     # what is installed stays as it is
        new = read(at, source.stamp(at), folder) - found
        found |= new
        todo += new
    return sorted(found)


@lru_cache(maxsize=4096)
def _reached(file: Path, now: tuple[int, int], folder: Path | None) -> frozenset[Path]:
    """The files that a file imports, but for those of the core."""
    reached = (f for one in _syntax(file, now).imports for f in source.resolve(file, *one, folder))
    return frozenset(f for f in reached if not _of_core(f))


def _of_core(file: Path) -> bool:
    """Whether a file is of this package's core, whose results have a number instead."""
    parts = file.parent.parts
    name = source.ROOT.name
    return parts[-1] == name or parts[-2:] in ((name, "core"), (name, "storage"))


class _Syntax(typing.NamedTuple):
    digest: str
    imports: tuple[tuple[int, str, str], ...]


@lru_cache(maxsize=4096)
def _syntax(file: Path, now: tuple[int, int]) -> _Syntax:
    tree = source.parsed(file)
    without, written = _Unclaimed(tree), list[str]()
    _write(tree, without, written.append)
    digest = hashlib.sha256("".join(written).encode("utf-8", "surrogatepass")).hexdigest()
    return _Syntax(digest, tuple(sorted({i for i in source.imports(tree) if i not in without.imported})))


class _Unclaimed:
    """Which nodes of a tree do not count: strings that stand alone, claims, and imports that only claims
    use."""

    def __init__(self, tree: ast.Module) -> None:
        nodes = list(ast.walk(tree))
        claims = [n for c in nodes if isinstance(c, ast.ClassDef) for n in c.body if _is_claim(n)]
        inside = {id(n) for claim in claims for n in ast.walk(claim)}
        self.left = {id(c) for c in claims}
        spared = set[str]()
        if claims:
            named = [n for n in nodes if isinstance(n, ast.Name)]
            spared = {n.id for n in named if id(n) in inside} - {n.id for n in named if id(n) not in inside}
        self.imported: set[tuple[int, str, str]] = set()
        for node in tree.body:
            if isinstance(node, ast.ImportFrom):
                mine = [n for n in node.names if (n.asname or n.name) in spared]
                self.left |= {id(n) for n in mine} | ({id(node)} if len(mine) == len(node.names) else set())
                self.imported |= {(node.level, node.module or "", n.name) for n in mine}

    def __contains__(self, node: ast.AST) -> bool:
        return id(node) in self.left or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
                                         and isinstance(node.value.value, str))


def _is_claim(node: ast.stmt) -> bool:
    targets = (
        node.targets
        if isinstance(node, ast.Assign)
        else [node.target]
        if isinstance(node, ast.AnnAssign)
        else []
    )
    return bool(targets) and all(isinstance(t, ast.Name) and t.id in CLAIMS for t in targets)


def _write(node: Any, without: _Unclaimed, put: Callable[[str], None]) -> None:
    """A tree as strings, the same in all versions of Python: what is empty is left out, and so is where it
    stood."""
    if isinstance(node, ast.AST):
        put(f"{type(node).__name__}(")
        for name in node._fields:
            value = getattr(node, name, None)
            if value is not None and value != [] and not (name == "kind" and isinstance(node, ast.Constant)):
                put(f"{name}=")
                _write(value, without, put)
        put(")")
    elif isinstance(node, list):
        put("[")
        for one in node:
            if one not in without:
                _write(one, without, put)
        put("]")
    else:
        put(f"{node!r},")


# ---- data --------------------------------------------------------------------------------------------


def content(path: Path) -> str:
    """A hash of the bytes of a file, or of all files below a folder with their names.

    A link below a folder counts as what it says and, where there is something, the size and time of that: no
    link leads out of the folder. Files that did not change (size, time, inode) are not read again while the
    process lives.

    Raises:
        UserError: there is no such file, or one that may not be read.
    """
    digest = hashlib.sha256()
    try:
        start = path.resolve()
        if not start.is_dir():
            return _hash_of(start)[:16]
        for file in sorted(_below(start)):
            digest.update(
                f"{file.relative_to(start).as_posix()}\0{_hash_of(file)}\n".encode("utf-8", "surrogateescape")
            )
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}.") from None
    return digest.hexdigest()[:16]


def _below(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _below(Path(entry.path))
            else:
                yield Path(entry.path)


def _hash_of(file: Path) -> str:
    told = file.lstat()
    if stat.S_ISLNK(told.st_mode):
        there = file.stat() if file.exists() else None
        return f"-> {os.readlink(file)} {(there.st_size, there.st_mtime_ns) if there else ()}"
    if not stat.S_ISREG(told.st_mode):                       # a pipe would never end
        return f"special {stat.S_IFMT(told.st_mode)}"
    return _bytes_of(file, told.st_size, told.st_mtime_ns, told.st_ino)


@lru_cache(maxsize=65536)
def _bytes_of(file: Path, size: int, changed: int, inode: int) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def files_of(method: Method, root: Path) -> list[Path]:
    """The files and folders that a method's settings name (those of the type ``FilePath``), from the recipe's
    folder on."""
    return [root / name for name in _named(method)]


def _named(settings: Any) -> Iterator[str]:
    cls: Any = type(settings)
    hints = hints_of(cls)
    for field in dataclasses.fields(settings):
        yield from _strings(getattr(settings, field.name), _marked(hints[field.name]))


def _marked(kind: Any) -> bool:
    return FILE in getattr(kind, "__metadata__", ()) or any(map(_marked, typing.get_args(kind)))


def _strings(value: Any, marked: bool) -> Iterator[str]:
    """The names of files in a value; a group of settings says itself which of its own are."""
    if dataclasses.is_dataclass(value):
        yield from _named(value)
    elif isinstance(value, str) and marked and value:
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _strings(one, marked)
