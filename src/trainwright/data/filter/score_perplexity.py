"""Scores documents by the perplexity of a causal language model: exp of the loss of ``score_loss``.

Perplexity orders documents as the loss does; it is the scale on which papers state thresholds. A document
with nothing to predict has null. The model is the stage's ``from.model``: any causal language model with
its tokenizer.

Not for comparing models with different tokenizers.

Errors: no ``from.model``, or one without a tokenizer.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from trainwright.core.method import Curate

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context


class ScorePerplexity(Curate):
    """Adds a column with the perplexity of each document under ``from.model``."""

    column: str = "perplexity"
    """Name of the column."""
    length: int = 512
    """Longest piece the model reads, in tokens; shorter if it has fewer positions."""
    batch_tokens: int = 8192
    """Tokens of a forward pass, roughly."""
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
        from trainwright.data.filter.score_loss import ScoreLoss
        scored = ScoreLoss(column=self.column, length=self.length,
                           batch_tokens=self.batch_tokens).apply(documents, ctx)
        return scored.with_column(self.column, scored[self.column].clip(max=700.0).exp())
