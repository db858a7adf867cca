"""TheMethod: what it does, in one line (paper title, arXiv id).

The equation, with shapes and units. When not to use it. Errors that it raises.
"""
from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from trainwright.core.context import Context
from trainwright.core.method import ParamMap, Surgery


class TheMethod(Surgery):
    """What it does, in one line."""

    strength: float = 1.0
    """What the setting means, with its unit."""
    example: ClassVar[dict[str, Any]] = {"strength": 0.5}

    def operate(self, model: nn.Module, ctx: Context) -> ParamMap | None:
        return None
