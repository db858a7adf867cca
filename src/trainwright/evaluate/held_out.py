"""Loss, perplexity and bits per byte on held-out documents, by domain.

    loss = mean nats per token,   perplexity = exp(loss),
    bits_per_byte = total nats / ln 2 / UTF-8 bytes of the same documents

Whole documents are read in the order of their ids until there are ``tokens`` tokens; each is read alone,
and in pieces if it is longer than ``length``. Bits per byte are comparable between tokenizers, losses are
not. In conversations only the assistant's tokens are measured, and bits per byte are left out, since the
bytes are those of the whole conversation.

Errors: a domain that the corpus does not have, or that has no document in the split; one of ``domains``
without a token to measure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np
from torch import nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch, Evaluator
from trainwright.corpus.tokens import Corpus, Documents, open_corpus
from trainwright.lm.losses import evaluating, most_positions, token_losses
from trainwright.lm.rows import Piece, fill


class HeldOut(Evaluator):
    """Measures ``loss/DOMAIN``, ``perplexity/DOMAIN`` and ``bits_per_byte/DOMAIN``."""

    domains: tuple[str, ...] = ()
    """Domains to measure; by default all of the corpus."""
    split: Literal["train", "tune", "test"] = "test"
    """Which documents of the corpus to measure."""
    data: str = ""
    """Which corpus, where ``from.data`` names several."""
    tokens: int = 50_000
    """About how many tokens of each domain to measure."""
    length: int = 512
    """Tokens that the model sees at once; fewer if it has fewer positions."""
    batch_size: int = 16
    """Rows of a forward pass."""
    families: ClassVar[tuple[str, ...]] = ("causal_lm", "seq2seq", "factory")
    makes: ClassVar[tuple[str, ...]] = ("loss/*", "perplexity/*", "bits_per_byte/*")
    example: ClassVar[dict[str, object]] = {"tokens": 200, "length": 32, "batch_size": 4}

    def __post_init__(self) -> None:
        for name in ("tokens", "length", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")

    def may_make(self, metric: str) -> bool:
        return super().may_make(metric) and (not self.domains or metric.partition("/")[2] in self.domains)

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        corpus = open_corpus(ctx.path("data", self.data))
        out: dict[str, float] = {}
        for domain in self.domains or corpus.domains:
            found = chosen(corpus.select(self.split, (domain,)), self.tokens)
            nats, tokens = 0.0, 0
            for batch in self.batches(
                corpus, found, domain, min(self.length, most_positions(model) or self.length), ctx
            ):
                with evaluating(model):
                    nats += float(token_losses(model, batch, ctx).double().sum())
                tokens += int((batch["targets"] != UNTRAINED).sum())
            if not tokens and self.domains:
                raise UserError(
                    f"held_out: the {self.split!r} documents of the domain {domain!r} have no token to "
                    "measure."
                )
            if not tokens:
                continue
            out |= {
                f"loss/{domain}": nats / tokens,
                f"perplexity/{domain}": math.exp(min(nats / tokens, 700.0)),
            }
            if int(found.trained.sum()) >= int((found.length - 1).sum()):
                out[f"bits_per_byte/{domain}"] = nats / math.log(2) / max(1, int(found.bytes.sum()))
        return out

    def batches(
        self, corpus: Corpus, found: Documents, domain: str, length: int, ctx: Context
    ) -> Iterator[Batch]:
        """Rows with one piece of a document each, sorted by size to keep padding low; the same on all
        ranks."""
        pieces = [
            Piece(int(s), int(o) + at, min(length, int(n) - 1 - at))
            for s, o, n in zip(found.shard, found.offset, found.length, strict=True)
            for at in range(0, int(n) - 1, length)
        ]
        pieces.sort(key=lambda p: (p.size, p.shard, p.offset))
        for i in range(0, len(pieces), self.batch_size):
            part = pieces[i : i + self.batch_size]
            batch = fill(corpus, [(corpus.domains.index(domain), [p]) for p in part], part[-1].size) | {
                "packed": False
            }
            yield {n: t.to(ctx.device) if n not in ("domains", "packed") else t for n, t in batch.items()}


def chosen(found: Documents, tokens: int) -> Documents:
    """The first documents that together have ``tokens`` tokens; at least one."""
    many = int(np.searchsorted(found.length.cumsum(), tokens)) + 1
    names = ("id", "domain", "shard", "offset", "length", "bytes", "trained")
    return Documents(*(getattr(found, name)[:many] for name in names))
