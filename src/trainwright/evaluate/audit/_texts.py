"""Texts of a corpus that a model has read and others that it has not, and what the model says of each token.

What all attacks on membership share. Members are the documents of ``train``, the others those of ``test``:
both are drawn by a hash of their ids, so that they have one distribution.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED
from trainwright.corpus.tokens import Corpus, open_corpus, uniform
from trainwright.families import token_logits
from trainwright.lm.encoder_decoder import has_encoder
from trainwright.lm.losses import evaluating, most_positions, padded, positions, token_losses

LOGITS = 1 << 26
"""Most entries of the logits of one pass (256 MB in float32)."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Which documents an attack reads: settings that all attacks share."""

    domains: tuple[str, ...] = ()
    """Domains to measure; by default all of the corpus."""
    documents: int = 200
    """Most documents per side and domain."""
    length: int = 256
    """Tokens read of each document; fewer if the model has fewer positions."""
    batch_size: int = 16
    """Rows of a forward pass."""

    def __post_init__(self) -> None:
        for name in ("documents", "length", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")

    def may_make(self, metric: str) -> bool:
        """Whether the domain of a metric is among them."""
        return not self.domains or metric.partition("/")[2] in self.domains


class Text(NamedTuple):
    """The tokens that are read of a document, int64 [L + 1], and which of them count, bool [L + 1]."""

    id: str
    ids: NDArray[np.int64]
    counts: NDArray[np.bool_]

    def cut(self, tokens: int) -> Text:
        """Its first ``tokens`` tokens."""
        return Text(self.id, self.ids[:tokens], self.counts[:tokens])


class Told(NamedTuple):
    """What a model says of the tokens of a text that count, never of the first of all: float64 [n]."""

    ids: NDArray[np.int64]
    """The tokens."""
    logp: NDArray[np.float64]
    """The log-probability of each."""
    mean: NDArray[np.float64]
    """At each place the expectation of the log-probability, sum_v p_v log p_v, over the vocabulary."""
    spread: NDArray[np.float64]
    """Its standard deviation, the root of sum_v p_v (log p_v)^2 - mean^2."""
    other: NDArray[np.int64]
    """The likeliest token that is not the one there."""
    top: NDArray[np.float64] = np.zeros(0)
    """The log-probability of the likeliest token."""


class Sides(NamedTuple):
    """Known members and known others."""

    members: list[Text]
    others: list[Text]


def domains(how: Texts, ctx: Context) -> tuple[str, ...]:
    """The domains that are measured."""
    return how.domains or open_corpus(ctx.path("data")).domains


def sides(how: Texts, domain: str, model: nn.Module, ctx: Context, who: str) -> Sides:
    """Both sides of a domain.

    Raises:
        UserError: one of them has no document with a token to measure.
    """
    corpus = open_corpus(ctx.path("data"))
    return Sides(*(texts(corpus, split, how, domain, model, who) for split in ("train", "test")))


def texts(corpus: Corpus, split: str, how: Texts, domain: str, model: nn.Module, who: str) -> list[Text]:
    """Documents of a split and domain, in the order of a hash of their ids.

    Raises:
        UserError: none of them has a token to measure.
    """
    found = corpus.select(split, (domain,))
    order = np.argsort([uniform(name, "membership") for name in found.id], kind="stable")
    length = min(how.length, most_positions(model) or how.length)
    out: list[Text] = []
    for i in order:
        many = min(length + 1, int(found.length[i]))
        where = int(found.shard[i]), int(found.offset[i]), many
        if found.trained[i] > 0 and corpus.read_mask(*where)[1:].any():
            out.append(Text(str(found.id[i]), corpus.read(*where), corpus.read_mask(*where)))
        if len(out) == how.documents:
            break
    if not out:
        raise UserError(f"{who}: the {split!r} documents of the domain {domain!r} have no token to measure.")
    return out


def told(model: nn.Module, read: Sequence[Text], ctx: Context, batch_size: int, whole: bool = True,
         prefix: Sequence[int] = ()) -> list[Told]:
    """What a model says of each text, read alone.

    Args:
        whole: whether the whole distribution at each place is wanted; else only ``logp`` is filled in.
        prefix: tokens in front of every text, which do not count.

    Raises:
        UserError: the whole distribution of a model with an encoder.
    """
    if whole and has_encoder(model):
        raise UserError(f"a {type(model).__name__} has an encoder; this attack needs a model that is a "
                        "decoder alone.")
    out: dict[int, Told] = {}
    order = sorted(range(len(read)), key=lambda i: len(read[i].ids))
    while order:
        width = len(prefix) + max(len(read[i].ids) for i in order[:batch_size])
        vocabulary = getattr(getattr(model, "config", None), "vocab_size", 1) or 1
        fits = max(1, LOGITS // (width * int(vocabulary))) if whole else batch_size
        part, order = order[:min(batch_size, fits)], order[min(batch_size, fits):]
        rows = [_row(read[i], prefix) for i in part]
        batch = padded(rows, ctx)
        with torch.no_grad(), evaluating(model):
            if whole:
                logits = token_logits(model, batch["input_ids"], positions(model, batch))
                found = [_moments(z, t) for z, t in zip(logits, batch["targets"], strict=True)]
            else:
                nats = token_losses(model, batch, ctx).double().cpu().numpy()
                found = [_alone(n, t.cpu().numpy()) for n, t in zip(nats, batch["targets"], strict=True)]
        out |= dict(zip(part, found, strict=True))
    return [out[i] for i in range(len(read))]


def _row(text: Text, prefix: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Input and targets of a text behind a prefix."""
    ids = np.concatenate([np.asarray(prefix, dtype=np.int64), text.ids])
    targets = np.full(len(ids) - 1, UNTRAINED)
    own = np.where(text.counts[1:], text.ids[1:], UNTRAINED)
    targets[len(targets) - len(own):] = own
    return ids[:-1], targets


def _moments(logits: Tensor, targets: Tensor) -> Told:
    """Of one row, logits [L, vocabulary]; in float32, as half precision makes variances negative."""
    places = (targets != UNTRAINED).nonzero()[:, 0]
    words = targets[places]
    logp = logits[places].float().log_softmax(-1)
    p = logp.exp()
    known = torch.where(p > 0, logp, 0)                       # a token of no probability adds nothing
    mean = (p * known).sum(-1)
    spread = (p * known.square()).sum(-1).sub(mean.square()).clamp_min(0).sqrt()
    own = logp.gather(1, words[:, None])[:, 0]
    others = logp.scatter(1, words[:, None], -torch.inf).argmax(-1)
    return Told(words.cpu().numpy(), *(t.double().cpu().numpy() for t in (own, mean, spread)),
                others.cpu().numpy(), logp.amax(-1).double().cpu().numpy())


def _alone(nats: NDArray[np.float64], targets: NDArray[np.int64]) -> Told:
    there = targets != UNTRAINED
    nothing = np.zeros(0)
    return Told(targets[there], -nats[there], nothing, nothing, np.zeros(0, dtype=np.int64))
