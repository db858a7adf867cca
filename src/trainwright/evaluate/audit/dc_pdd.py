"""Tells members from others by the probabilities of tokens, each against how frequent that token is anyway.

"Pretraining Data Detection for Large Language Models: A Divergence-based Calibration Method" (arXiv
2409.14781): common words are likely in every text and say nothing about memory. With
f(v) = (count of v + 1) / (N + V) from N tokens of a reference corpus and a vocabulary of V,

    score = mean over the first occurrences of tokens x_t of  min(p_t log(1 / f(x_t)), cap)

where p_t is the probability (not its logarithm) of the token at its place. The first token of a text is not
scored, and the mean is over first occurrences only. Higher is more like a member.

f must come from texts that are neither members nor the others that are measured, cut by the same tokenizer:
here the ``tune`` documents of the corpus, or all documents of ``from.reference``. The paper takes 15 files of
C4 and cap = 0.01, tuned per benchmark. With a small vocabulary nearly every token reaches such a cap, and the
score is the share of those that do: choose ``cap`` on other documents than those that it is measured on.

Measured are the area under the ROC curve and the share of members found at no more than 1 % and 5 % false
alarms, with intervals of 95 %, as by ``membership``. Left out: PatentMIA, a set of Chinese patents.

Not with a reference of few tokens: most frequencies are then the same.

Errors: as of ``membership``; no reference documents; another tokenizer; a model with an encoder.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Evaluator
from trainwright.core.settings import Positive
from trainwright.core.stage import CORPUS, Role
from trainwright.corpus.tokens import SPLITS, Corpus, open_corpus
from trainwright.evaluate.audit._attacks import Asked, attacked
from trainwright.evaluate.audit._texts import Texts, Told

MOST = 50_000_000
"""Tokens of the reference that are counted."""


class DcPdd(Evaluator):
    """Measures ``dc_pdd_auc/DOMAIN`` and what is found at few false alarms."""

    cap: Positive = 0.01
    """Most that one token may add."""
    texts: Texts = Texts()
    """Which documents are read."""
    roles: ClassVar[dict[str, Role]] = {"reference": CORPUS}
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    makes: ClassVar[tuple[str, ...]] = ("dc_pdd_*/*",)
    example: ClassVar[dict[str, object]] = {"texts": {"documents": 8, "length": 24}}

    def may_make(self, metric: str) -> bool:
        return super().may_make(metric) and self.texts.may_make(metric)

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        frequency = frequencies(*self._reference(ctx))

        def scores(asked: Asked) -> Sequence[float]:
            return [self.score(one, frequency) for one in asked.told()]
        return attacked({self.name: scores}, model, self.texts, ctx, self.name)

    def score(self, told: Told, frequency: NDArray[np.float64]) -> float:
        """Of what a model says of one text, given the share of each token [V]."""
        _, first = np.unique(told.ids, return_index=True)
        terms = np.exp(told.logp[first]) * -np.log(frequency[told.ids[first]])
        return float(np.minimum(terms, self.cap).mean())

    def _reference(self, ctx: Context) -> tuple[Corpus, tuple[str, ...]]:
        """The corpus whose tokens are counted, and its splits."""
        corpus = open_corpus(ctx.path("data"))
        if not ctx.inputs.get("reference"):
            return corpus, ("tune",)
        other = open_corpus(ctx.path("reference"))
        if other.vocab_size != corpus.vocab_size:
            raise UserError(f"dc_pdd: from.reference has {other.vocab_size} tokens and from.data "
                            f"{corpus.vocab_size}: build both with one tokenizer.")
        return other, SPLITS


def frequencies(corpus: Corpus, splits: Sequence[str]) -> NDArray[np.float64]:
    """The smoothed share of each token in documents of a corpus, [V].

    Raises:
        UserError: it has none of these splits.
    """
    counts, read = np.zeros(corpus.vocab_size), 0
    for split in splits:
        try:
            found = corpus.select(split)
        except UserError:
            continue
        for shard, offset, length in zip(found.shard, found.offset, found.length, strict=True):
            counts += np.bincount(corpus.read(int(shard), int(offset), int(length)),
                                  minlength=corpus.vocab_size)
            read += int(length)
            if read > MOST:
                break
    if not read:
        raise UserError("dc_pdd: frequencies come from 'tune' documents, and the corpus has none; set tune "
                        "on its stage, or name another corpus: from = { reference = \"NAME\" }.")
    return (counts + 1) / (read + corpus.vocab_size)
