"""Values that no setting is meant for, and the settings that they are put into: of every method and of every
kind of stage, found from the registry."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainwright.core import registry
from trainwright.core.settings import group_of, hints_of
from trainwright.core.stage import stages

INFINITY, NAN = float("inf"), float("nan")


def deep(of: type, levels: int = 3000) -> Any:
    """Lists or tables within each other."""
    held: Any = of()
    for _ in range(levels):
        held = [held] if of is list else {"a": held}
    return held


VALUES: dict[str, Any] = {
    "0": 0, "-1": -1, "a half": 0.5, "1e308": 1e308, "-1e308": -1e308, "1e-300": 1e-300, "inf": INFINITY,
    "-inf": -INFINITY, "nan": NAN, "1e30": 1e30, "2**31 - 1": 2**31 - 1, "2**63": 2**63,
    "-2**63 - 1": -(2**63) - 1, "400 digits": int("9" * 400), "5,000 digits": 10**5000 - 1, "true": True,
    "false": False, "no text": "", "a word": "x", "a glob": "[", "NUL": "a\0b", "an escape": "\x1b[31mx",
    "markup": "[/red]", "half a character": "\udc80", "a long text": "x" * 100_000, "a path": "../../x",
    "a format": "{0.__class__}", "a date": datetime.date(2020, 1, 1), "an hour": datetime.time(1, 2),
    "an empty list": [], "a list of -1": [-1], "a list of nan": [NAN],
    "a list of 400 digits": [int("9" * 400)], "a list of no text": [""], "a list of lists": [[[[]]]],
    "a long list": [1] * 3000, "an empty table": {}, "a table of 2**63": {"a": 2**63},
    "a table of dates": {"a": datetime.date(2020, 1, 1)}, "deep lists": deep(list),
    "deep tables": deep(dict), "deep in a table": {"a": deep(list)}, "deep in a list": [deep(dict)],
}
"""By what they are."""


@dataclass(frozen=True)
class Case:
    """One value in one setting."""

    method: str
    path: str
    """The setting: of a group of settings, ``GROUP.FIELD``."""
    value: str

    @property
    def key(self) -> str:
        return self.path.rpartition(".")[2]

    def table(self) -> dict[str, Any]:
        """The method's example with it, as a recipe would name it."""
        example = dict(registry.find(self.method).example)
        group, _, field = self.path.rpartition(".")
        if not group:
            return {"use": self.method} | example | {field: VALUES[self.value]}
        inner = example.get(group, {})
        return {"use": self.method} | example | {group: dict(inner) | {field: VALUES[self.value]}}

    def make(self) -> Any:
        return registry.create(self.table(), Path(), "here")


def paths(cls: type) -> Iterator[str]:
    """The settings of a class, and those of its groups."""
    for field in dataclasses.fields(cls):
        yield field.name
        if (group := group_of(hints_of(cls)[field.name])) is not None:
            yield from (f"{field.name}.{inner}" for inner in paths(group))


def of_methods() -> list[Case]:
    """Every value in every setting of every method."""
    return [
        Case(name, path, value)
        for name in registry.cards()
        for path in paths(registry.find(name))
        for value in VALUES
    ]


def of_stages() -> list[tuple[str, str, str]]:
    """The same of every kind of stage: kind, setting, value."""
    return [(kind, path, value) for kind, cls in stages().items() for path in paths(cls) for value in VALUES]
