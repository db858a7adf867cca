"""Python sources as syntax trees, and the files behind their imports. Nothing of them is run."""
from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path

from trainwright.core.errors import UserError

ROOT = Path(__file__).parents[1]
"""The folder of this package."""
INSTALLED = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
BODIES = ("body", "orelse", "handlers", "finalbody", "cases")
"""Where syntax trees keep the statements that stand in others."""


def stamp(file: Path) -> tuple[int, int]:
    """Size and time of change: a file in which they are the same is taken for unchanged while a process
    lives."""
    told = file.stat()
    return told.st_size, told.st_mtime_ns


def parsed(file: Path) -> ast.Module:
    """The syntax tree of a file, which may be a user's own and wrong. Not to be changed: everybody gets the
    same.

    Raises:
        UserError: it cannot be read, is not Python, or not in UTF-8.
    """
    try:
        return _parsed(file, stamp(file))
    except SyntaxError as error:
        raise UserError(f"{file}, line {error.lineno}: this is no Python: {error.msg}.") from None
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise UserError(f"{file}: not a Python file in UTF-8.") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}.") from None


@lru_cache(maxsize=32)
def _parsed(file: Path, now: tuple[int, int]) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """What is imported anywhere in a file, but for what only a type checker sees: level, module and name (or
    neither)."""
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from ((0, one.name, "") for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, node.module or "", one.name) for one in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            todo += node.orelse
        else:                                                       # only statements hold imports
            todo += (one for name in BODIES for one in getattr(node, name, ()))


def beside(file: Path) -> Path | None:
    """The folder in which a user's own file finds what it imports; None for the files of installed
    packages."""
    return None if ROOT in file.parents or any(i in file.parents for i in INSTALLED) else file.parent


def resolve(file: Path, level: int, module: str, name: str, folder: Path | None) -> list[Path]:
    """The files that an import of ``file`` reads: of its own package, of this one, and of ``folder``, in
    which it looks too.

    Packages on the way count (their ``__init__.py`` runs), and so does ``name`` where it is a module itself.
    What is installed beside (torch, the standard library) is in no list.
    """
    parts = [p for p in module.split(".") if p]
    wanted = [parts, [*parts, name]] if name else [parts]
    if level:
        start = file.parents[level - 1] if level <= len(file.parents) else None
        return _under(start, wanted) if start is not None else []
    top = _top(file)
    found = _under(top.parent, wanted) if top is not None and parts[:1] == [top.name] else []
    if not found and parts[:1] == [ROOT.name]:
        found = _under(ROOT.parent, wanted)
    return found or (_under(folder, wanted) if folder is not None else [])


def _under(start: Path, wanted: list[list[str]]) -> list[Path]:
    """Files of the modules, and the ``__init__.py`` of every package that holds them."""
    found: dict[Path, None] = {}
    for parts in wanted:
        places = [start.joinpath(*parts[:i + 1]) for i in range(len(parts))]
        if not parts:
            found |= dict.fromkeys([start / "__init__.py"] if (start / "__init__.py").is_file() else [])
        for place in places:
            for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
                if file.is_file():
                    found[file] = None
                    break
    return list(found)


@cache
def _top_of(folder: Path) -> Path | None:
    if not (folder / "__init__.py").is_file():
        return None
    return _top_of(folder.parent) or folder


def _top(file: Path) -> Path | None:
    """The outermost package that a file lies in."""
    return _top_of(file.parent)
