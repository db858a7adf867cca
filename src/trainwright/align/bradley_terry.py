"""Learns rewards from comparisons: the chosen answer's is to be the higher one.

The model of Bradley and Terry, as "Learning to summarize from human feedback" (arXiv 2009.01325) fits it to a
reward model. With r(x, y) the reward of an answer (``reward_head``),

    P(y+ is preferred to y-) = sigmoid(r(x, y+) - r(x, y-))
    loss = - log P + center (r(x, y+) + r(x, y-))^2                             the loop divides by the pairs

``center`` holds rewards around 0 (arXiv 2312.09244), which the comparisons alone leave open. It reads the
batch of ``examples`` with ``fields = ["chosen", "rejected"]``; pairs of equal answers, and those of which the
length of a row leaves no answer, are neither summed nor counted. Logs ``rewards/chosen``,
``rewards/rejected``, ``rewards/margins`` and ``rewards/accuracies``.

Not for ratings on a scale. Not for more than one or two epochs: a reward model learns its pairs by heart
quickly; look at ``preference_accuracy`` on pairs that are held out.

Errors: a model without a reward head; a batch without pairs.
"""
from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainwright.align._pairs import rows_of, teaching
from trainwright.align._rewards import head_of, rewards
from trainwright.core.context import Context
from trainwright.core.method import Batch, Objective, State
from trainwright.core.settings import Rate


class BradleyTerry(Objective):
    """Log-likelihood of which of two answers is preferred, one number a pair."""

    center: Rate = 0.0
    """Factor of the squared sum of a pair's rewards; 0.01 is usual where it is wanted."""
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    beside: ClassVar[tuple[dict[str, Any], ...]] = (
        {"use": "examples", "fields": ["chosen", "rejected"], "domains": ["chat"], "length": 32},
        {"use": "reward_head"})
    example: ClassVar[dict[str, Any]] = {"center": 0.01}

    def init(self, model: nn.Module, ctx: Context) -> State:
        head_of(model)
        return {}

    def count(self, batch: Batch) -> float:
        return float(teaching(self.name, batch).sum())

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        learned = teaching(self.name, batch)
        chosen, rejected = rewards(model, rows_of(batch)).chunk(2)
        if many := int(learned.sum()):
            with torch.no_grad():
                told = {"chosen": chosen, "rejected": rejected, "margins": chosen - rejected,
                        "accuracies": (chosen > rejected).float()}
                for name, values in told.items():
                    ctx.note(f"rewards/{name}", values[learned].mean(), weight=many)
        values = -F.logsigmoid(chosen - rejected) + self.center * (chosen + rejected).square()
        return torch.where(learned, values, 0)
