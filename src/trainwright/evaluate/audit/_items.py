"""Multiple-choice items in a file: a line of JSON each, with ``question``, ``choices`` and ``answer``."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from trainwright.core.errors import UserError
from trainwright.core.shown import brief

EXAMPLE = str(Path(__file__).with_name("example.jsonl"))
"""A file of such items, for the battery."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Item(NamedTuple):
    """A question, its choices, and the place of the right one."""

    question: str
    choices: tuple[str, ...]
    answer: int

    @property
    def text(self) -> str:
        """All of it, as a document might have it."""
        return "\n".join([self.question, *self.choices])


def read(path: str, root: Path, who: str) -> list[Item]:
    """The items of a file of JSON lines; ``answer`` is the place of a choice, its letter, or the choice.

    Raises:
        UserError: it cannot be read, or a line is no item.
    """
    file = root / path
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{who}: {path} cannot be read as text: {error}.") from None
    out = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            out.append(_item(line, f"{who}: {path}, line {number}"))
    if not out:
        raise UserError(f"{who}: {path} has no items.")
    return out


def _item(line: str, where: str) -> Item:
    form = '{"question": "…", "choices": ["…", "…"], "answer": 0}'
    try:
        told: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"{where} is no JSON; an item is {form}.") from None
    choices = told.get("choices") if isinstance(told, dict) else None
    if (not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS)
            or not all(isinstance(one, str) for one in choices) or not isinstance(told.get("question"), str)):
        raise UserError(f"{where} is no item; one is {form}.")
    answer = told.get("answer")
    known: dict[Any, int] = {LETTERS[i]: i for i in range(len(choices))}
    known |= {one: i for i, one in enumerate(choices)}
    if not isinstance(answer, (int, str)) or isinstance(answer, bool) or (
            answer not in known and not (isinstance(answer, int) and 0 <= answer < len(choices))):
        raise UserError(f"{where}: answer = {brief(answer)} is none of its {len(choices)} choices: write the "
                        "place from 0 on, the letter, or the choice.")
    return Item(told["question"], tuple(choices), answer if isinstance(answer, int) else known[answer])
