"""Who wants to hear of a run: progress displays, trackers, tests."""
from __future__ import annotations

from typing import Any


class Listener:
    """Hears everything, changes nothing. Every method does nothing until a subclass says otherwise."""

    def stage(self, name: str, kind: str, state: str, info: dict[str, Any]) -> None:
        """A stage is ``cached``, ``started``, ``resumed``, ``finished`` or ``failed``."""

    def step(self, stage: str, row: dict[str, float]) -> None:
        """One step of a training stage: the row that goes to ``metrics.jsonl``."""

    def say(self, line: str) -> None:
        """A line for the user."""

    def close(self) -> None:
        """The run is over."""


class Listeners(Listener):
    """Several listeners as one."""

    def __init__(self, *listeners: Listener) -> None:
        self.all = listeners

    def stage(self, name: str, kind: str, state: str, info: dict[str, Any]) -> None:
        for one in self.all:
            one.stage(name, kind, state, info)

    def step(self, stage: str, row: dict[str, float]) -> None:
        for one in self.all:
            one.step(stage, row)

    def say(self, line: str) -> None:
        for one in self.all:
            one.say(line)

    def close(self) -> None:
        for one in self.all:
            one.close()
