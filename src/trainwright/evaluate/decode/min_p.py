"""Draws the next token among those that are not much less likely than the likeliest.

"Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs" (arXiv 2407.01082). With P the
distribution of the next token, what is left are the tokens v with

    P(v) >= p * max over u of P(u)

and all others get a score of minus infinity. The threshold falls where the model is unsure, so that many
tokens are left, and rises where it is sure; at high temperatures text stays coherent longer than with
``nucleus``. Applied by ``MinPLogitsWarper`` of transformers. A stage's temperature comes before it, as in
the paper.

Not where the likeliest token is taken (temperature 0), which is never removed.

Errors: a ``p`` that is not from 0 to 1.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.method import Decode


class MinP(Decode):
    """Leaves the tokens that are at least ``p`` times as likely as the likeliest."""

    p: float = 0.1
    """Least probability, as a share of that of the likeliest token (the paper's p_base)."""
    example: ClassVar[dict[str, Any]] = {"p": 0.2}

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"p must be from 0 to 1, not {self.p}")

    def processor(self, model: nn.Module, ctx: Context) -> Callable[[Tensor, Tensor], Tensor]:
        from transformers import MinPLogitsWarper
        return MinPLogitsWarper(self.p)  # type: ignore[no-any-return]
