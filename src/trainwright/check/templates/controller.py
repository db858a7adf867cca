"""TheMethod: what it does, in one line (paper title, arXiv id).

The equation, with shapes and units. When not to use it. Errors that it raises.
"""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from trainwright.core.context import View
from trainwright.core.method import Command, Controller, State


class TheMethod(Controller):
    """What it does, in one line."""

    strength: float = 1.0
    """What the setting means, with its unit."""
    example: ClassVar[dict[str, Any]] = {"strength": 0.5}

    def tick(self, view: View, state: State) -> Iterable[Command]:
        return ()
