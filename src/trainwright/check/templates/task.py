"""TheMethod: what it does, in one line (paper title, arXiv id).

The equation, with shapes and units. When not to use it. Errors that it raises.
"""
from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from trainwright.core.context import Context
from trainwright.core.method import Task


class TheMethod(Task):
    """What it does, in one line."""

    strength: float = 1.0
    """What the setting means, with its unit."""
    example: ClassVar[dict[str, Any]] = {"strength": 0.5}

    def grade(self, prompt: str, answer: str) -> float:
        return self.strength * (prompt.strip() in answer)

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        return {"the_method": self.grade("a question", "a question and its answer")}
