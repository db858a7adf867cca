"""Draws the next token from the nucleus: the likeliest tokens that together hold most of the probability.

"The Curious Case of Neural Text Degeneration" (arXiv 1904.09751), also called top-p. The nucleus of a
distribution P over the vocabulary is the smallest set V of tokens for which

    sum over v in V of P(v) >= p

(tokens are taken from the likeliest on). All others get a score of minus infinity, so that V shares the
probability of 1. It grows where the model is unsure and shrinks where it is sure, unlike a fixed top-k.
Applied by ``TopPLogitsWarper`` of transformers. A stage's temperature comes before it.

Not where the likeliest token is taken (temperature 0), which is always in the nucleus.

Errors: a ``p`` that is not above 0 and at most 1.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.method import Decode


class Nucleus(Decode):
    """Leaves the smallest set of tokens whose probabilities add up to ``p``."""

    p: float = 0.9
    """Probability that the nucleus holds at least (top-p)."""
    example: ClassVar[dict[str, Any]] = {"p": 0.5}

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise ValueError(f"p must be above 0 and at most 1, not {self.p}")

    def processor(self, model: nn.Module, ctx: Context) -> Callable[[Tensor, Tensor], Tensor]:
        from transformers import TopPLogitsWarper
        return TopPLogitsWarper(self.p)  # type: ignore[no-any-return]
