"""In-context pretraining: a row holds related documents, which see each other; all else is as usual.

"In-Context Pretraining: Language Modeling Beyond Document Boundaries" (arXiv 2310.10638). Each document has
edges to the ``neighbours`` most similar ones (cosine of the column ``embedding``, exact). The graph is
walked once:

    begin at the document with the fewest edges; go on to the most similar unvisited neighbour;
    if there is none, begin again at the remaining document with the fewest edges.

The documents are concatenated in that order and cut into rows of ``length`` tokens, which each epoch
shuffles anew (in order, consecutive steps would share a topic). Positions count through a row, so attention
crosses documents, and every token is a target, the first ones of documents too. Each document occurs
exactly once an epoch.

Replaces ``pack``. ``embed`` in the corpus stage writes the column; with ``column = ""`` the tf-idf of the
tokens stands in for it. A walk stays within a domain, so mixtures work as with ``pack``. Copies must go, or
the loss in a context falls by copying: as in the authors' code, a document is left out if its first 100
characters are those of the one before it in the walk (``near_duplicates``). ``minhash`` in the corpus stage
finds all copies, and is better. The log reports how similar consecutive documents are.

Batches are as of ``pack``, except that ``document`` counts through a row though nothing keeps documents
apart.

Not for rows shorter than most documents, nor for more than some hundred thousand documents: exact
neighbours cost n^2 similarities, and the paper's billions need an approximate search.

Errors: no such column, embeddings of several lengths or not finite, a domain without documents,
conversations. """
from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError, suggest
from trainwright.core.method import Batch, Data, State
from trainwright.data.order.iclm._contexts import Contexts, contexts_of
from trainwright.lm.losses import most_positions
from trainwright.lm.preview import preview


class Iclm(Data):
    """Rows of equal length made of related documents, which see each other."""

    length: int = 512
    """Positions in a row."""
    split: Literal["train", "tune", "test"] = "train"
    """Which documents of the corpus."""
    domains: tuple[str, ...] = ()
    """Domains to take; all if none is named."""
    column: str = "embedding"
    """Column of the documents with their embeddings; empty: tf-idf of their tokens."""
    neighbours: int = 9
    """Edges from each document to the most similar ones."""
    near_duplicates: float = 0.85
    """Jaccard of the first 100 characters above which the second of two neighbours in the walk is left
    out; 1 keeps all."""
    example: ClassVar[dict[str, Any]] = {"length": 32, "domains": ["prose", "code"], "column": "",
                                         "neighbours": 4}

    def __post_init__(self) -> None:
        if self.length < 2 or self.neighbours < 1:
            raise ValueError(f"length must be 2 or more and neighbours 1 or more, not {self.length} and "
                             f"{self.neighbours}")
        if not 0 < self.near_duplicates <= 1:
            raise ValueError(f"near_duplicates must be above 0 and at most 1, not {self.near_duplicates}")

    def init(self, model: nn.Module, ctx: Context) -> State:
        found = self.contexts(ctx)
        most = most_positions(model) if families.is_pretrained(model) else None
        if most is not None and self.length > most:
            raise UserError(f"iclm: length = {self.length} is more than the {most} positions of the model "
                            "(max_position_embeddings).")
        return {"shared": {"rows": 0, "taken": dict.fromkeys(found.domains, 0)}}

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        if not ctx.batch_rows:
            raise UserError("iclm: the stage must say how many rows a step has: batch_tokens or batch_size.")
        found, shared = self.contexts(ctx), state["shared"]
        weights = self.weights(found, ctx.knobs.get("mixture"))
        chosen = []
        for number in range(shared["rows"], shared["rows"] + ctx.batch_rows):
            domain = found.natural(number) if weights is None else self.draw(found, weights, number, ctx)
            chosen.append((domain, shared["taken"][domain]))
            shared["taken"][domain] += 1
        shared["rows"] += ctx.batch_rows
        ctx.note("similarity_in_context", found.likeness)
        if found.duplicates:
            ctx.note("near_duplicates", float(found.duplicates))
        return found.batch(chosen[ctx.rows(len(chosen))])

    def epoch(self, ctx: Context) -> int:
        return self.contexts(ctx).total

    def row_tokens(self) -> int:
        return self.length

    def preview(self, batch: Batch, ctx: Context) -> str:
        found = self.contexts(ctx)
        shown = preview(batch, ctx.tokenizer or found.corpus.tokenizer)
        return (f"documents that follow one another have a similarity of {found.likeness:.3f} in the mean, "
                f"in random order {found.random:.3f}; {found.duplicates:,} near-duplicates are left out; an "
                f"example: {shown}")

    def contexts(self, ctx: Context) -> Contexts:
        return contexts_of(ctx.path("data"), self.split, self.domains, self.length, self.column,
                           self.neighbours,
                           self.near_duplicates, ctx.seed)

    def weights(self, found: Contexts, mixture: dict[str, float] | None) -> torch.Tensor | None:
        """The mixture over the domains at hand, or None where there is none."""
        for name in mixture or ():
            if name not in found.domains:
                raise UserError(f"iclm: the mixture names the domain {name!r}, which has no {self.split!r} "
                                f"document here{suggest(name, found.domains)}.")
        if not mixture:
            return None
        weights = torch.tensor([float(mixture.get(name, 0.0)) for name in found.domains])
        if not (weights >= 0).all() or not weights.sum() > 0:
            raise UserError(f"iclm: the mixture {mixture} must have weights of 0 or more, and one above 0.")
        return weights

    @staticmethod
    def draw(found: Contexts, weights: torch.Tensor, number: int, ctx: Context) -> str:
        """A row's domain depends on its number, not on the rank that reads it."""
        generator = ctx.rng(f"iclm/row/{number}", at=0)
        return list(found.domains)[int(torch.multinomial(weights, 1, generator=generator))]
