"""Scores documents by the loss that a causal language model has on them.

The column gets the mean of the negative log-likelihoods of a document's tokens, in nats a token: -1/n sum_i log p(x_i | x_<i);
null for a document with nothing to predict. One longer than ``length`` is read in parts, each without what came before. Of a
conversation only what the assistant says counts, where the model's chat template marks it.

The model is the stage's ``from.model``: any causal language model with its tokenizer.

Errors: no ``from.model``, or one without a tokenizer.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from trainwright.core.method import Curate

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context


class ScoreLoss(Curate):
    """Adds a column with the loss of each document under ``from.model``."""

    column: str = "loss"
    """Name of the column."""
    length: int = 512
    """Tokens that the model sees at once; fewer where it has fewer positions."""
    batch_tokens: int = 8192
    """Tokens of a forward pass, about."""
    example: ClassVar[dict[str, Any]] = {"length": 32, "batch_tokens": 512}

    def __post_init__(self) -> None:
        if self.length < 1 or self.batch_tokens < 1:
            raise ValueError(f"length and batch_tokens must be positive, not {self.length} and {self.batch_tokens}")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.selecting import attach, settled
        from trainwright.lm.scoring import Reader, losses
        rows = settled(documents, ctx)
        told = losses(rows, Reader.of(ctx.path("model"), ctx, self.name, self.length, self.batch_tokens))
        return attach(rows, told.select(["id", "loss"]).rename_columns(["id", self.column]))
