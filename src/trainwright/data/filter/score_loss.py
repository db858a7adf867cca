"""Scores documents by the loss of a causal language model.

The column holds the mean negative log-likelihood of a document's tokens, in nats a token, and null for a
document with nothing to predict:

    -1/n sum_i log p(x_i | x_<i)

A document longer than ``length`` is read in parts, each without the text before it. In a conversation only
what the assistant says counts, if the model's chat template marks it. The model is the stage's
``from.model``: any causal language model with its tokenizer.

Not for comparing models with different tokenizers: nats a token are not nats a character.

Errors: no ``from.model``, or one without a tokenizer.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from trainwright.core.method import Curate
from trainwright.core.stage import Role

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context


class ScoreLoss(Curate):
    """Adds a column with the loss of each document under ``from.model``."""

    column: str = "loss"
    """Name of the column."""
    length: int = 512
    """Longest piece the model reads, in tokens; shorter if it has fewer positions."""
    batch_tokens: int = 8192
    """Tokens of a forward pass, roughly."""
    roles: ClassVar[dict[str, Role]] = {"model": Role(needed=True)}
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "texts are read sorted by length; what a model made of them is not made "
        "again for each look"
    }
    example: ClassVar[dict[str, Any]] = {"length": 32, "batch_tokens": 512}

    def __post_init__(self) -> None:
        if self.length < 1 or self.batch_tokens < 1:
            raise ValueError(f"length and batch_tokens must be positive, not {self.length} and "
                             f"{self.batch_tokens}")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.selecting import attach, settled
        from trainwright.lm.scoring import Reader, losses
        rows = settled(documents, ctx)
        told = losses(rows, Reader.of(ctx.path("model"), ctx, self.name, self.length, self.batch_tokens))
        return attach(rows, told.select(["id", "loss"]).rename_columns(["id", self.column]))
