"""Packing: rows of equal length made of several documents that do not see each other.

There are two ways. As a stream, documents follow each other in random order and are cut wherever a row is
full; a document that continues in another row starts there at position 0, without the text before. With
``whole``, no document is cut: each goes to the fullest row that has room for it, longest first ("Fewer
Truncations Improve Language Modeling", arXiv 2404.10830, with the best-fit-decreasing rule); the rest of a
row is padding, and what exceeds the length of a row is dropped, counted and reported. A document with
nothing to learn from is left out and counted.

A batch holds, for R rows of L positions: ``input_ids``, ``targets`` (the next token, -100 where nothing is
learned), ``position_ids`` (from 0 in each document, which keeps them apart), ``document`` (number in its
row, -1 for padding), ``domain``, ``address`` (where in the corpus the token is, see ``lm/rows.py``; -1 for
padding), all int64 [R, L], and ``domains``, ``packed``. Each epoch has every trained token once. The knob
``mixture`` sets the domains' shares of the rows; a small domain is then seen more often than others.

Not for models whose documents see each other whatever the positions (found by running the model once):
those need ``isolate = "rows"``, at the price of padding.

Errors: an unknown or empty domain, in ``domains`` or ``mixture``; a length beyond the model's positions; a
model that mixes documents. """
from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError, suggest
from trainwright.core.method import Batch, Data, State
from trainwright.corpus.tokens import open_corpus
from trainwright.lm.losses import isolation_error, most_positions
from trainwright.lm.preview import preview
from trainwright.lm.rows import Cut, Rows, rows_of


class Pack(Data):
    """Rows of equal length made of several documents, which do not see each other."""

    length: int = 512
    """Positions in a row."""
    split: Literal["train", "tune", "test"] = "train"
    """Which documents of the corpus."""
    domains: tuple[str, ...] = ()
    """Domains to take; all if none is named."""
    data: str = ""
    """Which corpus, where ``from.data`` names several."""
    whole: bool | None = None
    """Never cut a document to fill a row; by default only conversations are kept whole."""
    isolate: Literal["documents", "rows"] = "documents"
    """Keep documents apart by attention or, for models that cannot, by giving each a row of its own."""
    default: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"length": 32}

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ValueError(f"length must be 2 or more, not {self.length}")

    def init(self, model: nn.Module, ctx: Context) -> State:
        rows = self.rows(ctx)
        if families.has_family(model):
            most = most_positions(model)
            if most is not None and self.length > most:
                raise UserError(f"pack: length = {self.length} is more than the {most} positions of the "
                                "model (max_position_embeddings).")
            if self.isolate == "documents":
                isolation_error(model, rows.corpus.vocab_size, ctx)
        return {"shared": {"rows": 0, "taken": dict.fromkeys(rows.domains, 0)}}

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        if not ctx.batch_rows:
            raise UserError("pack: the stage must say how many rows a step has: batch_tokens or batch_size.")
        rows, shared = self.rows(ctx), state["shared"]
        weights = self.weights(rows, ctx.knobs.get("mixture"))
        chosen = []
        for number in range(shared["rows"], shared["rows"] + ctx.batch_rows):
            domain = rows.natural(number) if weights is None else self.draw(rows, weights, number, ctx)
            chosen.append((domain, shared["taken"][domain]))
            shared["taken"][domain] += 1
        shared["rows"] += ctx.batch_rows
        for name, number in (("truncated_documents", rows.truncated), ("lost_documents", rows.lost)):
            if number:
                ctx.note(name, float(number))
        return rows.batch(chosen[ctx.rows(len(chosen))])

    def epoch(self, ctx: Context) -> int:
        return self.rows(ctx).total

    def row_tokens(self) -> int:
        return self.length

    def preview(self, batch: Batch, ctx: Context) -> str:
        rows = self.rows(ctx)
        told = [(rows.truncated, f"documents are cut after {self.length} tokens"),
                (rows.lost, "of them lose all that was to be learned and are left out"),
                (rows.untrained, "documents have nothing to learn and are left out")]
        example = preview(batch, ctx.tokenizer or rows.corpus.tokenizer)
        return "\n".join([f"an example, what is trained between ⟦ ⟧: {example}",
                          *(f"{n:,} {what}" for n, what in told if n)])

    def rows(self, ctx: Context) -> Rows:
        folder = ctx.path("data", self.data)
        whole = open_corpus(folder).chat if self.whole is None else self.whole
        return rows_of(folder, self.split, self.domains, Cut(self.length, whole, self.isolate == "rows"),
                       ctx.seed)

    def weights(self, rows: Rows, mixture: dict[str, float] | None) -> torch.Tensor | None:
        """The mixture over the domains at hand, or None where there is none."""
        for name in mixture or ():
            if name not in rows.domains:
                raise UserError(f"pack: the mixture names the domain {name!r}, which has no {self.split!r} "
                                f"document here{suggest(name, rows.domains)}.")
        if not mixture:
            return None
        weights = torch.tensor([float(mixture.get(name, 0.0)) for name in rows.domains])
        if not (weights >= 0).all() or not weights.sum() > 0:
            raise UserError(f"pack: the mixture {mixture} must have weights of 0 or more, and one above 0.")
        return weights

    @staticmethod
    def draw(rows: Rows, weights: torch.Tensor, number: int, ctx: Context) -> str:
        """A row's domain depends on its number, not on the rank that reads it."""
        generator = ctx.rng(f"pack/row/{number}", at=0)
        return list(rows.domains)[int(torch.multinomial(weights, 1, generator=generator))]
