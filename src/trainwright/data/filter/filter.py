"""Keeps the documents for which a condition on their columns holds.

The condition is SQL over the columns: those of every table (``id text domain source metadata messages label``
…), ``characters``, which is added for it, and those that earlier methods have written:
``where = "characters >= 200 AND loss < 4.5"``. A document for which the condition is null (it has no score)
is dropped.

Not for a fixed share of the documents: use ``best`` or ``random_subset``.

Errors: a condition that does not parse or names a missing column; the corpus stage refuses an empty
selection. """
from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from trainwright.core.errors import UserError
from trainwright.core.method import Curate

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context


class Filter(Curate):
    """Keeps documents by a condition on columns."""

    where: str
    """The condition, in SQL."""
    example: ClassVar[dict[str, Any]] = {"where": "characters >= 10 AND domain <> 'chat'"}

    def __post_init__(self) -> None:
        if not self.where.strip():
            raise ValueError("where is empty: write a condition such as \"characters >= 200\".")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        import daft
        own = "characters" in documents.column_names
        table = documents if own else documents.with_column("characters", documents["text"].length())
        try:
            kept = table.where(daft.sql_expr(self.where))
        except Exception as error:  # of several classes, none of them public
            why = " ".join(str(error).split())
            raise UserError(f"filter: where = {self.where!r} is no condition on "
                            f"{', '.join(table.column_names)}: {why.rstrip('.')}.") from None
        return kept if own else kept.exclude("characters")
