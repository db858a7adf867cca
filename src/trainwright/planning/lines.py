"""Where in a recipe a mistake lies: the line of the key that its sentence names."""
from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

LARGEST = 1 << 20
"""Bytes of a recipe in which a line is looked for."""
PLACE = re.compile(r"^(?P<file>[^:]+?\.toml): (?:(?P<kind>stage|arm) '(?P<name>[^']+)'"
                   r"(?: \((?P<method>[^)]+)\))?: )?(?P<rest>.+)$", re.DOTALL)
HEAD = re.compile(r"(?m)^[ \t]*\[.*$")


def line_of(message: str) -> int | None:
    """The line that a sentence such as ``life.toml: stage 'base' (adamw): lr must be …`` is about; None where
    it names no recipe, or nothing in one."""
    found = PLACE.match(message)
    if found is None:
        return None
    try:
        file = Path(found["file"])
        if file.stat().st_size > LARGEST:
            return None
        text = file.read_bytes().decode("utf-8-sig")
    except (OSError, ValueError):
        return None
    block = _block(text, found["kind"], found["name"]) if found["kind"] else (0, len(text))
    if block is None:
        return None
    begin, end = _method(text, *block, found["method"]) if found["method"] else block
    places = (*_keys(text, begin, end, found["rest"]), *([] if found["kind"] is None else [begin]))
    return text.count("\n", 0, places[0]) + 1 if places else None


def _block(text: str, kind: str, name: str) -> tuple[int, int] | None:
    """Beginning and end of the table ``[[stage]]`` of this name."""
    heads = [m.start() for m in HEAD.finditer(text)]
    for begin, end in pairwise([*heads, len(text)]):
        head = text[begin:end].split("\n", 1)[0]
        if kind in head and re.search(rf"(?m)^\s*name\s*=\s*[\"']{re.escape(name)}[\"']", text[begin:end]):
            return begin, end
    return None


def _method(text: str, begin: int, end: int, name: str) -> tuple[int, int]:
    """From where a method is named in a block to where the next one is."""
    uses = [m.start() for m in re.finditer(r"\buse\s*=\s*[\"'][^\"']*[\"']", text[begin:end])]
    for here, there in pairwise([*uses, end - begin]):
        if re.match(rf"use\s*=\s*[\"']{re.escape(name)}[\"']", text[begin + here:begin + there]):
            return begin + here, begin + there
    return begin, end


def _keys(text: str, begin: int, end: int, rest: str) -> Iterator[int]:
    """Where the keys that a sentence begins with stand, then the words that it quotes."""
    named = re.match(r"(?:unknown (?:setting|key) ')?([A-Za-z_][\w.]*)", rest)
    for key in [*([named[1].rpartition(".")[2]] if named else []), *re.findall(r"\bfrom\.(\w+)", rest)]:
        if found := re.compile(rf"\b{re.escape(key)}\b[\"']?\s*=").search(text, begin, end):
            yield found.start()
    for word in re.findall(r"'([^']{1,80})'", rest):
        if (at := text.find(f'"{word}"', begin, end)) >= 0:
            yield at
