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
``from.model`` is the reference. With ``prompt = "short"`` it reads the prompt in the column of that name,
which ``long_pairs`` writes, in place of the pair's own, for ``longpo`` (arXiv 2502.13922).

Not for one epoch of a small model: the objective then asks the reference on the way for the same price.

Errors: no earlier corpus, no model; a model with another tokenizer than the corpus; no pair.
"""
from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainwright.core.method import Curate
from trainwright.core.settings import Count, Row
from trainwright.core.stage import Role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daft import DataFrame
    from torch import nn

    from trainwright.core.context import Context


class ReferenceLogProbs(Curate):
    """Adds the column ``reference``: log-probabilities of both answers of each pair under ``from.model``."""

    length: Row = 512
    """Tokens of prompt and answer at most: that of ``examples`` in the stage that trains."""
    prompt: Literal["prompt", "short"] = "prompt"
    """The column of the prompt that the reference reads."""
    batch_tokens: Count = 8192
    """Tokens of a forward pass, roughly."""
    roles: ClassVar[dict[str, Role]] = {"model": Role(needed=True)}
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "pairs are read sorted by id; what a model made of them is not made again "
        "for each look"
    }
    example: ClassVar[dict[str, Any]] = {"length": 32, "batch_tokens": 512}

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.lm.model_columns import Asking, column_of
        pairs = Asking(self.name, "reference", ("chosen", "rejected"), self.length, self.batch_tokens,
                       "preference pair", None if self.prompt == "prompt" else self.prompt)
        which = documents["chosen"].not_null()
        if self.prompt == "short" and self.prompt in documents.column_names:
            which = which & documents[self.prompt].not_null()
        return column_of(documents, ctx, pairs, which, self._told)

    def _told(self, model: nn.Module, batch: dict[str, Any], ctx: Context) -> Iterator[str]:
        """What the column holds of each pair."""
        import torch

        from trainwright.align._pairs import scored
        from trainwright.corpus.inputs import fingerprints
        from trainwright.lm.model_columns import READ
        read = {name.removeprefix(READ): t for name, t in batch.items() if name.startswith(READ)} or batch
        with torch.no_grad():
            found = scored(model, read, ctx, packed=False)
        told = zip(found.chosen.tolist(), found.rejected.tolist(), fingerprints(batch), strict=True)
        for chosen, rejected, of in told:
            yield json.dumps({"chosen": chosen, "rejected": rejected, "of": of})
