"""Tells members from others by the least likely tokens of a text.

"Detecting Pretraining Data from Large Language Models" (arXiv 2310.16789): a text that was not read has a few
tokens that surprise the model, one that was read has fewer. Of a text of T tokens all but the first have a
log-probability l_t; the score is the mean of the k smallest,

    k = max(1, floor(share (T - 1)))

so that a short text has at least one. ``normalized`` is the method of "Min-K%++" (arXiv 2404.02936), the same
mean of

    z_t = (l_t - mu_t) / sigma_t,   mu_t = sum_v p_v log p_v,   sigma_t^2 = sum_v p_v (log p_v)^2 - mu_t^2

where p is the distribution over the whole vocabulary at place t, in float32. With ``share`` = 1 and without
``normalized`` it is the mean loss. Higher is more like a member; a score below chance is not turned round.

Measured are the area under the ROC curve and the share of members found at no more than 1 % and 5 % false
alarms, with intervals of 95 %, as by ``membership``; that method's ``words`` says whether the split is fair.
Left out: WikiMIA, whose members and others differ by their date and so can be told apart without a model.

Not to be compared between texts of very different lengths: the minimum of many tokens is lower.

Errors: as of ``membership``; a model with an encoder.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from torch import nn

from trainwright.core.context import Context
from trainwright.core.method import Evaluator
from trainwright.evaluate.audit._attacks import Asked, attacked
from trainwright.evaluate.audit._texts import Texts, Told


class MinKProb(Evaluator):
    """Measures ``min_k_prob_auc/DOMAIN`` and what is found at few false alarms; with ``normalized``,
    ``min_k_prob_plus_auc/DOMAIN`` and so on."""

    share: float = 0.2
    """Share of the tokens, the least likely ones, that count."""
    normalized: bool = False
    """Whether each log-probability is measured against the distribution at its place (Min-K%++)."""
    texts: Texts = Texts()
    """Which documents are read."""
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    makes: ClassVar[tuple[str, ...]] = ("min_k_prob_*/*",)
    example: ClassVar[dict[str, object]] = {"texts": {"documents": 8, "length": 24}}

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, not {self.share}")

    def may_make(self, metric: str) -> bool:
        return super().may_make(metric) and self.texts.may_make(metric)

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        name = "min_k_prob_plus" if self.normalized else "min_k_prob"
        return attacked({name: self.scores}, model, self.texts, ctx, self.name)

    def scores(self, asked: Asked) -> Sequence[float]:
        """One number for each text, higher for a member."""
        return [self.score(one) for one in asked.told(whole=self.normalized)]

    def score(self, told: Told) -> float:
        """Of what a model says of one text."""
        values = told.logp
        if self.normalized:
            values = (values - told.mean) / np.maximum(told.spread, 1e-6)
        k = max(1, int(self.share * len(values)))
        return float(np.sort(values)[:k].mean())
