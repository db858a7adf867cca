"""TheMethod: what it does, in one line (paper title, arXiv id).

The equation, with shapes and units. When not to use it. Errors that it raises.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from trainwright.core.context import Context
from trainwright.core.method import Curate

if TYPE_CHECKING:
    from daft import DataFrame


class TheMethod(Curate):
    """What it does, in one line."""

    strength: float = 1.0
    """What the setting means, with its unit."""
    example: ClassVar[dict[str, Any]] = {"strength": 0.5}

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        return documents
