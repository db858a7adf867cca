"""Guide: answers that took a hint are learned without it, weighted by the ratio of the two contexts.

"Adaptive Guidance Accelerates Reinforcement Learning of Reasoning Models" (arXiv 2506.13923), Guide-GRPO.
With x a prompt, h its hint, y an answer that was drawn with the hint before it, A the advantage in its group,

    q_t = pi(y_t | x, y_<t) / old(y_t | x, h, y_<t)
    loss = - A q_t / (q_t + g),    g = 0.9-quantile of q over the answer's tokens, at least 1e-4, held fixed

and no clip, which would leave most of them without a gradient: q is far below 1 where the hint mattered.
Answers that took no hint have the loss of ``grpo``, whose settings these are; the paper's are the defaults
(tokens as the unit, clip of 0.2 on both sides, advantages by the group's standard deviation, no divergence).

It reads the batch of ``hinted_rollout``, which says when a hint is given. Logs those of ``grpo``, of answers
without a hint, and ``guide/ratio``, the mean of q.

The authors take the quantile over all positions of a micro-batch, of one answer with their settings; here it
is over an answer's own tokens, so that no micro-batch changes it. Left out: the variant for PPO with a value
network, and the mixing in of failed answers, which is off in their code.

Not where the model solves most prompts by itself: it is ``grpo`` then, and a hint is never asked for.

Errors: a batch that is not of ``hinted_rollout``; those of ``grpo``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from trainwright.align._sampled import READS, SMALL, ratio_of
from trainwright.align.grpo import Grpo
from trainwright.core.context import Context
from trainwright.core.method import Batch, Objective

SHARE = 0.9
"""Of an answer's tokens whose ratio is below g."""
LEAST = 1e-4
"""Of g."""


class GuideRlvr(Grpo, Objective):
    """The loss of GRPO, with another one for tokens that were sampled with a hint."""

    source: ClassVar[str] = "hinted_rollout"
    reads: ClassVar[tuple[str, ...]] = (*READS, "hinted")
    beside: ClassVar[tuple[dict[str, Any], ...]] = ({"use": "hinted_rollout", **SMALL},)
    example: ClassVar[dict[str, Any]] = {}

    def surrogate(self, logp: Tensor, moved: Tensor, batch: Batch, learned: Tensor) -> Tensor:
        free = super().surrogate(logp, moved, batch, learned)
        q = ratio_of(moved)
        guided = -self.advantages(batch)[:, None] * q / (q + level(q.detach(), learned))
        return torch.where(batch["hinted"][:, None] > 0, guided, free)

    def _note(
        self, told: dict[str, Tensor], moved: Tensor, batch: Batch, learned: Tensor, ctx: Context
    ) -> None:
        hinted = learned & (batch["hinted"][:, None] > 0)
        if many := int(hinted.sum()):
            ctx.note("guide/ratio", ratio_of(moved.detach())[hinted].mean(), weight=many)
        super()._note(told, moved, batch, learned & ~hinted, ctx)


def level(q: Tensor, learned: Tensor) -> Tensor:
    """The quantile of each answer's ratios [R, 1], given those of tokens and which are learned [R, L]."""
    own = torch.where(learned, q, float("nan"))
    return own.nanquantile(SHARE, dim=1, keepdim=True).nan_to_num(LEAST).clamp(min=LEAST)
