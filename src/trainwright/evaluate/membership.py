"""Membership inference: how well the loss separates documents that were trained on from others.

The attack of "Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting" (arXiv
1709.01604), with the area under its ROC curve instead of one threshold: the probability that a member (a
``train`` document) has a lower mean loss than a non-member (a ``test`` document of the same domain), ties
counted half,

    auc = #{(m, n): loss(m) < loss(n)} / (members · non-members)

0.5 is no better than guessing: nothing was memorized that the loss would show; 1 separates them perfectly.
Documents are drawn by the hash of their id, so both sides have the same distribution; the first ``length``
tokens of each are read. The standard error of a chance value is about
0.29 / sqrt(documents of the smaller side).
Do not use it on a corpus whose training documents were selected by something that affects the loss:
members and non-members then differ before any training.

Errors: a domain that the corpus does not have, or without documents of either kind.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Evaluator
from trainwright.corpus.tokens import Corpus, open_corpus, uniform
from trainwright.lm.losses import evaluating, most_positions, token_losses
from trainwright.lm.rows import Piece, fill


class Membership(Evaluator):
    """Measures ``membership_auc/DOMAIN``."""

    domains: tuple[str, ...] = ()
    """Domains to measure; by default all of the corpus."""
    documents: int = 200
    """Most documents per side and domain."""
    length: int = 256
    """Tokens read of each document; fewer if the model has fewer positions."""
    batch_size: int = 16
    """Rows of a forward pass."""
    makes: ClassVar[tuple[str, ...]] = ("membership_auc/*",)
    example: ClassVar[dict[str, object]] = {"documents": 10, "length": 32}

    def __post_init__(self) -> None:
        for name in ("documents", "length", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")

    def may_make(self, metric: str) -> bool:
        return super().may_make(metric) and (not self.domains or metric.partition("/")[2] in self.domains)

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        corpus = open_corpus(ctx.path("data"))
        out = {}
        for domain in self.domains or corpus.domains:
            members, others = (self._losses(model, corpus, split, domain, ctx) for split in ("train", "test"))
            out[f"membership_auc/{domain}"] = auc(members, others)
        return out

    def _losses(
        self, model: nn.Module, corpus: Corpus, split: str, domain: str, ctx: Context
    ) -> NDArray[np.float64]:
        """The mean loss of each document that has a target."""
        found = corpus.select(split, (domain,))
        order = np.argsort([uniform(name, "membership") for name in found.id], kind="stable")
        length = min(self.length, most_positions(model) or self.length)
        pieces = [
            Piece(int(found.shard[i]), int(found.offset[i]), min(length, int(found.length[i]) - 1))
            for i in order
            if found.length[i] > 1 and found.trained[i] > 0
        ][: self.documents]
        if not pieces:
            raise UserError(
                f"membership: the {split!r} documents of the domain {domain!r} have no token to measure."
            )
        pieces.sort(key=lambda p: (p.size, p.shard, p.offset))
        out: list[float] = []
        for at in range(0, len(pieces), self.batch_size):
            part = pieces[at : at + self.batch_size]
            batch = fill(corpus, [(corpus.domains.index(domain), [p]) for p in part], part[-1].size) | {
                "packed": False
            }
            batch = {n: t.to(ctx.device) if isinstance(t, torch.Tensor) else t for n, t in batch.items()}
            with evaluating(model):
                nats = token_losses(model, batch, ctx).double().sum(1)
            counts = (batch["targets"] != UNTRAINED).sum(1)
            out += (nats / counts)[counts > 0].tolist()
        return np.array(out)


def auc(members: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Share of the pairs in which the member has the lower loss; a tie is half a pair."""
    ordered = np.sort(others)
    above = len(others) - np.searchsorted(ordered, members, side="right")
    ties = np.searchsorted(ordered, members, side="right") - np.searchsorted(ordered, members, side="left")
    return float((above + ties / 2).sum() / (len(members) * len(others)))
