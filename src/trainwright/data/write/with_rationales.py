"""Adds to each question with its answer a second document that asks for the reasons: what a large model said.

The data of "Distilling Step-by-Step!" (arXiv 2305.02301). A conversation of the corpus whose metadata have a
``rationale`` (a column of the file that it comes from, such as what a large model answered when it was asked
to think aloud) stays as it is, and a document ``ID#explain`` in the domain ``explain`` is written beside it:

    user         ``prefix`` + what the user asks last
    assistant    the rationale

``distilling_step_by_step`` learns both kinds, each with a mean of its own; at use only the question is asked,
which costs no more than before. The paper marks both kinds (``predict:`` and ``explain:``); here the question
itself is the mark of the first, so that held-out documents, which no method may change, are asked as the
trained ones are. Documents without a rationale stay alone, and are counted (``with_rationales/left_out``).

Do not use it where the answer must give its reasons: then they belong into the answer.

Errors: no conversation with a rationale.
"""
from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

from trainwright.core.errors import UserError
from trainwright.core.method import Curate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daft import DataFrame

    from trainwright.core.context import Context
    from trainwright.corpus.sources import Row


class WithRationales(Curate):
    """Writes a question for the reasons beside each question that has any."""

    rationale: str = "rationale"
    """Where the reasons are: a column that another method wrote, or else a key of a document's metadata."""
    prefix: str = "explain: "
    """What stands before the question that asks for them."""
    domain: str = "explain"
    """Domain of the new documents."""
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "the table is settled before new documents are written beside it"}
    example: ClassVar[dict[str, Any]] = {"rationale": "label"}

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.selecting import columns, settled
        from trainwright.corpus.sources import union
        from trainwright.lm.writing.documents import kept_table
        rows = settled(documents, ctx)
        talks = rows.where(rows["messages"].not_null())
        apart = [self.rationale] if self.rationale in rows.column_names else []
        table = columns(talks, "id", "messages", "metadata", "origin", *apart).sort_by("id").to_pylist()
        return union(rows, kept_table(self._explained(table, ctx), ctx))

    def _explained(self, table: list[dict[str, Any]], ctx: Context) -> Iterator[Row]:
        from trainwright.corpus.sources import document
        from trainwright.corpus.turns import turns
        many = 0
        for one in table:
            said, told = turns(one["messages"]), (json.loads(one["metadata"]) | one).get(self.rationale)
            if not isinstance(told, str) or not told.strip() or not said:
                ctx.note(f"{self.name}/left_out", 1.0)
                continue
            many += 1
            yield document(id=f"{one['id']}#explain", domain=self.domain, source=self.name,
                           origin=one["origin"] or one["id"], metadata={"original": one["id"]},
                           messages=[{"role": "user", "content": self.prefix + said[-1].instruction},
                                     {"role": "assistant", "content": told}])
        if not many:
            raise UserError("with_rationales: no conversation that came in has reasons as "
                            f"{self.rationale!r}.")
