"""Group relative policy optimization: answers that are better than their group's mean become likelier.

"DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models" (arXiv 2402.03300) and
what was published after it. With r_i the rewards of the G answers of a group (those that are graded), pi the
model, old the one that sampled, t a token of an answer:

    A_i   = (r_i - mean r) / (std r + 1e-4)      std over n - 1; scale = "none": without the divisor
    rho_t = pi(t) / old(t);  ratio = "sequence": the geometric mean over the answer's tokens, for all of them

    clip      the loss of a token
    ppo       - min(rho A, clamp(rho, 1 - clip_low, 1 + clip_high) A)
    cispo     - stop(min(rho, 1 + clip_high)) A log pi(t)                no token loses its gradient
    none      - rho A

    + kl K,  with d = log pi(t) - log ref(t):   k1: d     k2: d^2 / 2     k3: exp(-d) + d - 1
             corrected = true: rho K, whose gradient is that of the divergence   (arXiv 2512.02556)

    divide    units, of which the loop takes the mean over the whole step, all micro-batches and ranks
    token     tokens: a long answer weighs more
    answer    answers, each the mean over its tokens
    group     groups, each the mean over the tokens of its graded answers
    length    answers, each the sum over its tokens by ``new_tokens`` of the rollout

    paper                            settings
    GRPO      arXiv 2402.03300       divide = "answer", kl = 0.04
    Dr. GRPO  arXiv 2503.20783       divide = "length", scale = "none"
    DAPO      arXiv 2503.14476       divide = "token", clip_high = 0.28
    GSPO      arXiv 2507.18071       divide = "answer", ratio = "sequence", clip_low = 3e-4, clip_high = 4e-4
    CISPO     arXiv 2506.13585       divide = "token", clip = "cispo", clip_high = 4.0

It reads the batch of ``rollout``; log-probabilities are at the temperature of that. As a loss, k1 has a
gradient of mean 0 where the model is the one that sampled: it measures, and holds nothing, unless it is
corrected; k2 has that of the divergence, k3 is the usual one. The reference is the model that the stage
starts from, unless ``from.reference`` names another; without ``kl`` there is none.

In the first step on a rollout the model has not moved, so old and pi should agree: how far they do not is
logged (``mismatch/v1``, ``mismatch/v2`` and ``mismatch/largest``, see ``_sampled.py``), and a v2 above
``most_mismatch`` stops the stage as failed before its next step. Logs too: ``entropy``, ``clipped`` (share of
tokens whose clip acts), ``ratio`` and, with a reference, ``kl``.

Left out of DAPO: sampling until groups differ, and the penalty for length (``finished`` of ``rollout`` drops
what is too long). Not where pairs or answers are at hand and nothing can grade new ones: ``dpo``,
``supervised``.

Errors: a batch that is not of ``rollout``; what ``dpo`` says of its reference; a mismatch.
"""
from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainwright.align._pairs import check_reference, frozen
from trainwright.align._sampled import (
    MOST_MISMATCH,
    NOTHING,
    READS,
    SMALL,
    advantages,
    averaged,
    learned_of,
    mismatched,
    need,
    note_mismatch,
    ratio_of,
    trimmed,
)
from trainwright.core.context import Context, View
from trainwright.core.method import UNTRAINED, Batch, Command, Controller, Objective, State
from trainwright.core.settings import Between, Positive, Rate
from trainwright.core.stage import Role
from trainwright.families import evaluating
from trainwright.lm.logprobs import token_logprobs
from trainwright.lm.losses import way_of


class Grpo(Objective, Controller):
    """The clipped policy gradient with advantages relative to the group, one number a token, answer or
    group."""

    ratio: Literal["token", "sequence"] = "token"
    """What is compared with the model that sampled: each token, or the answer as a whole."""
    clip: Literal["ppo", "cispo", "none"] = "ppo"
    """What becomes of a ratio that is too far from 1."""
    clip_low: Annotated[float, Between(0, 1)] = 0.2
    """How far a ratio may fall below 1."""
    clip_high: Rate = 0.2
    """How far a ratio may rise above 1."""
    scale: Literal["group", "none"] = "group"
    """Whether advantages are divided by the standard deviation of their group."""
    divide: Literal["token", "answer", "group", "length"] = "token"
    """What the loss is the mean of."""
    kl: Rate = 0.0
    """Factor of the divergence from the reference."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """How that is estimated."""
    corrected: bool = False
    """Whether that estimate is multiplied by the ratio, through which the gradient then flows too."""
    reference: Literal["model", "adapter_off"] = "model"
    """The reference: a frozen model, or the model with its adapters off."""
    most_mismatch: Positive = MOST_MISMATCH
    """Half the mean squared difference of the log-probabilities of sampling and training that stops the
    stage."""
    source: ClassVar[str] = "rollout"
    """The data method that makes its batches."""
    reads: ClassVar[tuple[str, ...]] = READS
    """What of a batch is its own."""
    roles: ClassVar[dict[str, Role]] = {"reference": Role(needed=True, instead="model")}
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    beside: ClassVar[tuple[dict[str, Any], ...]] = ({"use": "rollout", **SMALL},)
    example: ClassVar[dict[str, Any]] = {"kl": 0.05}

    def asks(self) -> dict[str, Role]:
        return self.roles if self.kl and self.reference == "model" else {}

    def init(self, model: nn.Module, ctx: Context) -> State:
        if self.kl:
            check_reference(self.name, self.reference, model, ctx)
        way_of(model)                                          # runs it once, which is no cost of a step
        return {}

    def tick(self, view: View, state: State) -> Iterable[Command]:
        yield from mismatched(view, self.most_mismatch)

    def count(self, batch: Batch) -> float:
        need(self.name, batch, self.reads, self.source)
        learned = batch["targets"] != UNTRAINED
        if self.divide == "token":
            return max(float(learned.sum()), NOTHING)
        there = learned.any(1).double()
        if self.divide == "group":
            there = there / batch["group_graded"].sum(1).clamp(min=1)
        return max(float(there.sum()), NOTHING)

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        rows = trimmed(batch)
        learned = learned_of(rows)
        logp, entropy = token_logprobs(model, rows, batch["temperature"])
        moved = torch.where(learned, logp - rows["logp"], 0)
        values = self.surrogate(logp, moved, batch, learned)
        told = {"entropy": entropy}
        if self.kl:
            with torch.no_grad(), frozen(self.reference, model, ctx) as other, evaluating(other):
                apart = token_logprobs(other, rows, batch["temperature"]).logp
            told["kl"] = self.divergence(logp - apart)
            held = told["kl"] * (self.ratios(moved, learned) if self.corrected else 1)
            values = values + self.kl * held
        self._note(told, moved, batch, learned, ctx)
        return self.divided(torch.where(learned, values, 0), batch)

    # ---- its parts -----------------------------------------------------------------------------------------

    def advantages(self, batch: Batch) -> Tensor:
        """How much better than its group each answer is [R]."""
        return advantages(batch, self.scale)

    def ratios(self, moved: Tensor, learned: Tensor) -> Tensor:
        """Probabilities over those of sampling, given the log-ratio of each token: [R, L], or [R, 1]."""
        return ratio_of(averaged(moved, learned) if self.ratio == "sequence" else moved)

    def surrogate(self, logp: Tensor, moved: Tensor, batch: Batch, learned: Tensor) -> Tensor:
        """The loss of each token [R, L], of log-probabilities and log-ratios; ``batch`` says what answers
        are worth."""
        return self.policy_loss(logp, moved, self.advantages(batch), learned)

    def policy_loss(self, logp: Tensor, moved: Tensor, advantages: Tensor, learned: Tensor) -> Tensor:
        """The loss of each token [R, L], of log-probabilities, log-ratios and advantages."""
        ratio, better = self.ratios(moved, learned), advantages[:, None]
        if self.clip == "cispo":
            return -ratio.clamp(max=1 + self.clip_high).detach() * better * logp
        values = ratio * better
        if self.clip == "ppo":
            values = torch.minimum(values, ratio.clamp(1 - self.clip_low, 1 + self.clip_high) * better)
        return -values.expand_as(logp)

    def divergence(self, apart: Tensor) -> Tensor:
        """The estimate of the divergence at each token, given log pi - log ref."""
        match self.estimator:
            case "k1":
                return apart
            case "k2":
                return apart.square() / 2
            case _:
                return torch.expm1(-apart) + apart

    def divided(self, values: Tensor, batch: Batch) -> Tensor:
        """The losses of tokens [R, L] as those of units, rows first."""
        if self.divide == "token":      # of the length of the batch's rows, in every micro-batch
            return F.pad(values, (0, batch["targets"].shape[1] - values.shape[1]))
        if self.divide == "answer":
            return values.sum(1) / (batch["targets"] != UNTRAINED).sum(1).clamp(min=1)
        if self.divide == "group":
            return values.sum(1) / batch["group_tokens"].clamp(min=1)
        return values.sum(1) / batch["new_tokens"]

    @torch.no_grad()
    def _note(self, told: dict[str, Tensor], moved: Tensor, batch: Batch, learned: Tensor,
              ctx: Context) -> None:
        many = int(learned.sum())
        if not many:
            return
        ratio = self.ratios(moved, learned).expand_as(moved)
        better = self.advantages(batch)[:, None].expand_as(moved)
        high = (ratio > 1 + self.clip_high) & ((better > 0) | (self.clip == "cispo"))
        low = (ratio < 1 - self.clip_low) & (better < 0) & (self.clip == "ppo")
        acts = (high & (self.clip != "none")) | low
        for name, values in (told | {"ratio": ratio, "clipped": acts.float()}).items():
            ctx.note(name, values[learned].mean(), weight=many)
        note_mismatch(moved, learned, batch, ctx)
