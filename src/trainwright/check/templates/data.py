"""TheMethod: what it does, in one line (paper title, arXiv id).

The equation, with shapes and units. When not to use it. Errors that it raises.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from trainwright.core.context import Context
from trainwright.core.method import Batch, Data, State


class TheMethod(Data):
    """What it does, in one line."""

    strength: float = 1.0
    """What the setting means, with its unit."""
    example: ClassVar[dict[str, Any]] = {"strength": 0.5}

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        return pull()
