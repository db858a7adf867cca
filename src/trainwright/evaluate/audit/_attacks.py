"""Attacks on membership as one interface: from what is known of texts to one score each, higher for members.

    loss        mean log p of the tokens
    zlib        that mean / bytes of the text as zlib packs it
    reference   mean log p - mean log p by another model, which has not read the members
    neighbour   mean log p - the mean of it over texts in which some tokens are exchanged
    recall      log p of the text behind texts that are no members / log p of it alone
    words       no model at all: a naive Bayes classifier of the tokens, fitted on other members and others

``words`` is the control. Members and others of one distribution cannot be told apart without a model; where
``words`` can, so can every other attack, and its score says nothing about memory.

Sources: loss, arXiv 1709.01604; zlib, 2012.07805; reference, 2012.07805 and 2112.03570; neighbour,
2305.18462 (its neighbours are written by a masked language model; here the model itself says which other
token is the likeliest at places that are drawn); recall, 2406.15968; the control, 2406.17975 (there a random
forest).
"""
from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.evaluate.audit._roc import numbers
from trainwright.evaluate.audit._texts import Sides, Text, Texts, Told, domains, sides, told
from trainwright.lm.losses import most_positions

FOLDS = 5
"""Parts of the documents, each of which is scored by a classifier fitted on the others."""
NEIGHBOURS, EXCHANGED = 8, 0.15
"""Neighbours of a text, and the share of its tokens that each has exchanged."""


@dataclass
class Asked:
    """Both sides of a domain, and what attacks may ask about them; each answer is found out once."""

    model: nn.Module
    domain: str
    sides: Sides
    how: Texts
    ctx: Context
    tokenizer: Any = None
    spare: Sequence[Text] = ()
    """Texts of neither side, of which the model has read none."""
    _known: dict[tuple[int, bool], list[Told]] = field(default_factory=dict)

    @property
    def texts(self) -> list[Text]:
        """Members, then others."""
        return [*self.sides.members, *self.sides.others]

    def told(self, whole: bool = False, model: nn.Module | None = None) -> list[Told]:
        """What the model (or another) says of each text."""
        asked = model or self.model
        for known in (whole, True):
            if (id(asked), known) in self._known:
                return self._known[id(asked), known]
        found = told(asked, self.texts, self.ctx, self.how.batch_size, whole)
        self._known[id(asked), whole] = found
        return found


class Attack(Protocol):
    """What tells members: one number for each text of ``asked.texts``, higher for a member."""

    def __call__(self, asked: Asked) -> Sequence[float]: ...


def means(found: Sequence[Told]) -> list[float]:
    """The mean log-probability of each text."""
    return [float(one.logp.mean()) for one in found]


def loss(asked: Asked) -> list[float]:
    """Texts with a low loss are members."""
    return means(asked.told())


def packed(asked: Asked) -> list[float]:
    """As ``loss``, against how well the text can be packed by a program that knows no language."""
    if asked.tokenizer is None:
        raise UserError("membership: zlib reads the text, and the corpus has no tokenizer to write it.")
    texts = [asked.tokenizer.decode(one.ids, skip_special_tokens=True) for one in asked.texts]
    sizes = [len(zlib.compress(text.encode())) for text in texts]
    return [mean / size for mean, size in zip(loss(asked), sizes, strict=True)]


def reference(asked: Asked) -> list[float]:
    """As ``loss``, against another model's."""
    other = asked.ctx.frozen.get("reference")
    if other is None:
        other = families.load(asked.ctx.path("reference"), "membership").to(asked.ctx.device).eval()
    pairs = zip(loss(asked), means(asked.told(model=other)), strict=True)
    return [mine - theirs for mine, theirs in pairs]


def neighbour(asked: Asked) -> list[float]:
    """As ``loss``, against texts that differ from this one in a few tokens."""
    found = asked.told(whole=True)
    rng = asked.ctx.rng(f"neighbours/{asked.domain}", at=0)
    changed = [_exchanged(text, one, rng) for text, one in zip(asked.texts, found, strict=True)
               for _ in range(NEIGHBOURS)]
    others = means(told(asked.model, changed, asked.ctx, asked.how.batch_size, whole=False))
    around = np.array(others).reshape(-1, NEIGHBOURS).mean(1)
    return [mine - float(theirs) for mine, theirs in zip(means(found), around, strict=True)]


def _exchanged(text: Text, found: Told, rng: torch.Generator) -> Text:
    """A text in which some of the tokens that count are others."""
    places = np.flatnonzero(text.counts[1:]) + 1
    many = max(1, round(EXCHANGED * len(places)))
    chosen = torch.randperm(len(places), generator=rng)[:many].numpy()
    ids = text.ids.copy()
    ids[places[chosen]] = found.other[chosen]
    return text._replace(ids=ids)


def recall(asked: Asked) -> list[float]:
    """What stands in front of a text makes a member less likely, and no other."""
    room = (most_positions(asked.model) or 2 * asked.how.length + 1) - max(len(t.ids) for t in asked.texts)
    prefix = np.concatenate([t.ids for t in asked.spare])[:room] if asked.spare else np.zeros(0, np.int64)
    if len(prefix) < 1 or room < 1:
        raise UserError("membership: recall puts texts that are no members in front of each: the corpus has "
                        "no 'tune' document for that, or the model no position left; lower length.")
    behind = means(told(asked.model, asked.texts, asked.ctx, asked.how.batch_size, False, prefix.tolist()))
    return [with_it / min(alone, -1e-9) for with_it, alone in zip(behind, loss(asked), strict=True)]


def words(asked: Asked) -> list[float]:
    """How much likelier the tokens of a text are among the members of other folds than among the others: the
    mean log-ratio, ranked within the fold so that folds can be pooled."""
    member = np.arange(len(asked.texts)) < len(asked.sides.members)
    fold = np.concatenate([np.arange(len(side)) % FOLDS for side in asked.sides])
    bags = [np.unique(text.ids) for text in asked.texts]
    size = 1 + max(int(bag.max()) for bag in bags)
    out = np.zeros(len(bags))
    for f in range(FOLDS):
        rates = [_rates([bags[i] for i in np.flatnonzero((fold != f) & (member == side))], size)
                 for side in (True, False)]
        inside = np.flatnonzero(fold == f)
        if len(inside):
            scores = np.array([(rates[0] - rates[1])[bags[i]].mean() for i in inside])
            out[inside] = (scores[:, None] > scores).mean(1) + (scores[:, None] == scores).mean(1) / 2
    return [float(one) for one in out]


def _rates(bags: Sequence[NDArray[np.int64]], size: int) -> NDArray[np.float64]:
    """The log of the share of texts that have each token, smoothed by one text with it and one without."""
    counts = np.zeros(size)
    for bag in bags:
        counts[bag] += 1
    return np.log((counts + 1) / (len(bags) + 2))


ATTACKS: dict[str, Callable[[Asked], list[float]]] = {
    "loss": loss, "zlib": packed, "reference": reference, "neighbour": neighbour, "recall": recall,
    "words": words}
"""The attacks that need no settings, by the name that a recipe gives them."""


def attacked(attacks: dict[str, Attack], model: nn.Module, how: Texts, ctx: Context,
             who: str) -> dict[str, float]:
    """The numbers of every attack, on every domain; attacks by the name that stands in front of a metric."""
    out: dict[str, float] = {}
    for domain in domains(how, ctx):
        asked = question(domain, model, how, ctx, who)
        for name, attack in attacks.items():
            scores, many = attack(asked), len(asked.sides.members)
            out |= numbers(name, domain, scores[:many], scores[many:], ctx)
    return out


def question(domain: str, model: nn.Module, how: Texts, ctx: Context, who: str) -> Asked:
    """Both sides of a domain, ready to be asked about."""
    from trainwright.corpus.tokens import open_corpus
    from trainwright.evaluate.audit._texts import texts
    corpus = open_corpus(ctx.path("data"))
    try:
        spare = texts(corpus, "tune", how, domain, model, who)
    except UserError:
        spare = []
    return Asked(model, domain, sides(how, domain, model, ctx, who), how, ctx, corpus.tokenizer, spare)
