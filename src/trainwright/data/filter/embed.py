"""Adds an embedding of each document: a column of float32 lists, to cluster or compare documents by.

By default it is the mean of the last hidden states of ``from.model``, any causal language model, over the
tokens of a document. A document longer than ``length`` is read in parts, each without the text before it.
With ``library``, a model of the package sentence-transformers embeds instead ("Sentence-BERT", arXiv
1908.10084). An empty document gets zeros.

Not for comparing directions as they are: the mean states of a causal model all point much the same way (see
the setting ``center`` of ``deita``).

Errors: neither ``from.model`` nor ``library``, a package that is not installed.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from trainwright.core.errors import UserError
from trainwright.core.method import Curate
from trainwright.core.stage import Role

if TYPE_CHECKING:
    import pyarrow as pa
    from daft import DataFrame

    from trainwright.core.context import Context


class Embed(Curate):
    """Adds the mean hidden state of each document, or what sentence-transformers makes of it."""

    column: str = "embedding"
    """Name of the column."""
    library: str = ""
    """Name or folder of a model of sentence-transformers; default: ``from.model``."""
    length: int = 512
    """Longest piece the model reads, in tokens; shorter if it has fewer positions."""
    batch_tokens: int = 8192
    """Tokens of a forward pass, roughly."""
    roles: ClassVar[dict[str, Role]] = {"model": Role()}
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
        from trainwright.lm.scoring import Reader, embeddings
        rows = settled(documents, ctx)
        told = self._by_library(rows) if self.library else \
            embeddings(rows, Reader.of(ctx.path("model"), ctx, self.name, self.length, self.batch_tokens))
        return attach(rows, told.rename_columns(["id", self.column]))

    def _by_library(self, rows: DataFrame) -> pa.Table:
        import pyarrow as pa

        from trainwright.corpus.selecting import columns
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise UserError("embed: library needs the package sentence-transformers: "
                            'pip install "trainwright[embed]".') from None
        texts = columns(rows, "id", "text")
        made = SentenceTransformer(self.library).encode(texts["text"].to_pylist(), show_progress_bar=False)
        return pa.table({"id": texts["id"],
                         "embedding": pa.array([row.tolist() for row in made], pa.list_(pa.float32()))})
