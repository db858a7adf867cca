"""Python code and its documentation, kept apart: which docstrings are prose, and the source without them."""
from __future__ import annotations

import ast
import hashlib
import importlib.metadata as metadata
import inspect
import os
import re
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

LARGEST = 100_000
"""Bytes: a larger file is a table of numbers or names more often than a program."""
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class File(NamedTuple):
    """A file of a package of some release (``torch 2.13.0``); ``name`` is its path within the
    installation."""

    release: str
    name: str
    path: Path


class Parsed(NamedTuple):
    """A source without its long docstrings, and these by the name of what they describe."""

    code: str
    prose: dict[str, str]


@cache
def releases(distribution: str) -> list[tuple[str, metadata.Distribution | None]]:
    """The interpreter (None), and what ``distribution`` requires where that is installed, each with its
    version. Reading them takes a tenth of a second, which a comparison would pay for each of its runs."""
    version = ".".join(map(str, sys.version_info[:3]))
    found: list[tuple[str, metadata.Distribution | None]] = [(f"python {version}", None)]
    for name in _requirements(distribution):
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found.append((f"{package.name.lower()} {package.version}", package))
    return found


def packages(distribution: str) -> dict[str, list[File]]:
    """The files of those releases that are programs or documentation."""
    found = {}
    for release, package in releases(distribution):
        if package is None:
            files = [File(release, name, path) for name, path in _below(Path(sysconfig.get_path("stdlib")))]
        else:
            names = (f for f in package.files or [] if f.suffix in (".py", ".md", ".rst", ""))
            files = [File(release, f.as_posix(), Path(str(f.locate()))) for f in names]
        found[release] = [f for f in files if _wanted(f)]
    return found


def _below(folder: Path) -> Iterator[tuple[str, Path]]:
    """Sources below a folder, without the packages that are installed into it."""
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.endswith("-packages") and name != "__pycache__"]
        for name in names:
            path = Path(place, name)
            yield path.relative_to(folder).as_posix(), path


def _requirements(distribution: str) -> list[str]:
    """What a distribution needs itself, without its extras; nothing where it runs without being installed."""
    try:
        lines = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return []
    return sorted({re.split(r"[^\w.-]", line)[0] for line in lines if "extra ==" not in line})


def _wanted(file: File) -> bool:
    """Programs and their documentation: no tests and no licences."""
    if not file.name.endswith((".py", ".md", ".rst", ".dist-info/METADATA")):
        return False
    parts = file.name.split("/")
    return not any(p.startswith(("test", "..")) or p.endswith(("_test", "_tests")) or p == "licenses"
                   for p in parts)


def ordered(found: dict[str, list[File]]) -> Iterator[File]:
    """All files: each package's in the order of a hash of their names, the packages taking turns."""
    queues = [sorted(found[name], key=lambda f: hashlib.sha256(f.name.encode()).digest())
              for name in sorted(found)]
    for turn in zip_longest(*queues):
        yield from (file for file in turn if file is not None)


def read(file: File) -> str | None:
    """The text of a file, with one kind of line end; None where it is too large, gone or not UTF-8."""
    try:
        if file.path.stat().st_size > LARGEST:
            return None
        return file.path.read_bytes().decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, UnicodeDecodeError):
        return None


def long_strings(source: str, shortest: int) -> int:
    """About how many characters of a source stand in long docstrings, without parsing it."""
    return sum(len(s) for s in re.findall(r'^\s*r?"""(.*?)"""', source, re.DOTALL | re.MULTILINE)
               if len(s) >= shortest)


def parse(source: str, shortest: int) -> Parsed | None:
    """Take the docstrings that are prose of at least ``shortest`` characters out of a source; None if it
    does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a stray backslash in somebody else's source
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return None
    lines: list[str | None] = [*source.split("\n")]
    prose: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for name, node in _documented(tree, ""):
        text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "").strip()
        if len(text) < shortest or not is_prose(text):
            continue
        seen[name] += 1
        prose[name if seen[name] == 1 else f"{name}:{seen[name]}"] = text
        _cut(lines, node)
    return Parsed("\n".join(line for line in lines if line is not None), prose)


def _documented(node: ast.AST, name: str) -> Iterator[tuple[str, Documented]]:
    """Every module, class and function with its dotted name; they may stand below an ``if`` or a ``try``."""
    if isinstance(node, Documented):
        yield name, node
    for child in ast.iter_child_nodes(node):
        own = name
        if isinstance(child, Documented) and not isinstance(child, ast.Module):
            own = f"{name}.{child.name}".lstrip(".")
        if isinstance(child, ast.stmt | ast.excepthandler):
            yield from _documented(child, own)


def _cut(lines: list[str | None], node: Documented) -> None:
    """Blank out the lines of a docstring; ``...`` takes its place where it is the whole body."""
    doc = node.body[0]
    assert doc.end_lineno is not None and doc.end_col_offset is not None
    first, last = lines[doc.lineno - 1] or "", lines[doc.end_lineno - 1] or ""
    before, after = first.encode()[: doc.col_offset].decode(), last.encode()[doc.end_col_offset :].decode()
    if before.strip() or after.strip().startswith(";"):
        lines[doc.lineno - 1] = before + "..." + after
    else:
        alone = len(node.body) == 1 and not isinstance(node, ast.Module)
        lines[doc.lineno - 1] = before + "..." if alone else None
    for i in range(doc.lineno, doc.end_lineno):
        lines[i] = None


def is_prose(text: str) -> bool:
    """Whether a text is sentences more than code or a table: words, spaces between them, and ends of
    sentences."""
    letters = len(re.sub(r"[\W\d_]", "", text)) + text.count(" ")
    examples = sum(line.lstrip().startswith((">>>", "...")) for line in text.split("\n"))
    mostly_words = letters >= 0.75 * len(text) and len(text.split()) >= 25 and "." in text
    return mostly_words and 4 * examples <= text.count("\n") + 1
