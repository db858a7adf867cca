"""Asks a frozen reference once what it makes of preference pairs, and keeps its answers beside them.

Of each pair with prompt x, chosen answer y+ and rejected answer y- the column ``reference`` holds, as JSON,

    chosen = log ref(y+|x),   rejected = log ref(y-|x)        sums over the answer's tokens, its end included
    of                                                        a checksum of both answers' tokens

in nats. ``dpo`` and its kin (arXiv 2305.18290) read them with ``reference = "column"`` from the batch of
``{ use = "examples", fields = ["chosen", "rejected", "reference"] }``, and then no second model is held in
memory, nor asked again in each epoch. As any artifact they are made anew where the pairs, the tokenizer, the
chat template, the model or ``length`` change; a batch whose tokens are not those that were scored is refused.
Dropout is off. Documents that are no pair have null, and so have those that are held out.

The pairs are those of the earlier corpus ``from.data``, whose tokenizer and template both stages use;
``from.model`` is the reference.

Not for one epoch of a small model: the objective then asks the reference on the way for the same price.

Errors: no earlier corpus, no model; a model with another tokenizer than the corpus; no pair.
"""
from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

from trainwright.core.errors import UserError
from trainwright.core.method import Curate
from trainwright.core.settings import Count, Row
from trainwright.core.stage import Role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daft import DataFrame
    from torch import nn

    from trainwright.core.context import Context
    from trainwright.corpus.inputs import Inputs


class ReferenceLogProbs(Curate):
    """Adds the column ``reference``: log-probabilities of both answers of each pair under ``from.model``."""

    length: Row = 512
    """Tokens of prompt and answer at most: that of ``examples`` in the stage that trains."""
    batch_tokens: Count = 8192
    """Tokens of a forward pass, roughly."""
    roles: ClassVar[dict[str, Role]] = {"model": Role(needed=True)}
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "pairs are read sorted by id; what a model made of them is not made again "
        "for each look"
    }
    example: ClassVar[dict[str, Any]] = {"length": 32, "batch_tokens": 512}

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        import pyarrow as pa

        from trainwright import families
        from trainwright.corpus.inputs import Inputs
        from trainwright.corpus.selecting import attach, columns, settled
        from trainwright.corpus.tokens import open_corpus
        rows, folder = settled(documents, ctx), ctx.path("model")
        corpus, own = open_corpus(ctx.path("data")), families.load_tokenizer(folder, self.name)
        theirs = corpus.tokenizer
        if own is not None and theirs is not None and own.get_vocab() != theirs.get_vocab():
            raise UserError(f"{self.name}: the corpus was tokenized by another tokenizer than the model's "
                            "own: make it with from = { tokenizer = … } of the model's stage.")
        inputs = Inputs(corpus, ("chosen", "rejected"), self.length, tokenizer=own)
        table = columns(rows.where(rows["chosen"].not_null()), *inputs.columns)
        if not len(table):
            raise UserError(f"{self.name}: no document that came in is a preference pair.")
        pairs = table.sort_by("id").to_pylist()
        model = families.load(folder, self.name).to(ctx.device).eval().requires_grad_(False)
        told = list(self._told(model, inputs, pairs, ctx))
        return attach(rows, pa.table({"id": pa.array([p["id"] for p in pairs], pa.large_string()),
                                      "reference": pa.array(told, pa.large_string())}))

    def _told(self, model: nn.Module, inputs: Inputs, pairs: list[dict[str, Any]],
              ctx: Context) -> Iterator[str]:
        """What the column holds of each pair."""
        import torch

        from trainwright.align._pairs import scored
        from trainwright.corpus.inputs import fingerprints
        many = max(1, self.batch_tokens // (2 * self.length))
        for at in range(0, len(pairs), many):
            made = inputs.batch(pairs[at:at + many])
            batch = {n: torch.from_numpy(a).to(ctx.device) for n, a in made.items()}
            with torch.no_grad():
                found = scored(model, batch, ctx, packed=False)
            told = zip(found.chosen.tolist(), found.rejected.tolist(), fingerprints(made), strict=True)
            for chosen, rejected, of in told:
                yield json.dumps({"chosen": chosen, "rejected": rejected, "of": of})
