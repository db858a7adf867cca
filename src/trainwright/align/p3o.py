"""Pairwise proximal policy optimization: of two answers to a prompt, the better one gains on the other.

"Pairwise Proximal Policy Optimization: Harnessing Relative Feedback for LLM Alignment" (arXiv 2310.00212).
With y1, y2 two answers to x that the model old has sampled, pi the model and ref the reference, log pi(y|x)
the sum over the answer's tokens, and nothing but pi with a gradient:

    r_i = reward(x, y_i) - beta (log old(y_i|x) - log ref(y_i|x))       the divergence is part of the reward
    d = r_1 - r_2,    rho_i = pi(y_i|x) / old(y_i|x),    m = log rho_1 - log rho_2

    clip        the loss of a pair
    none        - rho_1 rho_2 d m / 2                                        the product is held fixed
    joint       the same, the product kept in 1 - epsilon .. 1 + epsilon; no gradient where exp(m) has left
                that range in the direction of d
    separate    - (min(rho_1 d, clamp(rho_1) d) - max(rho_2 d, clamp(rho_2) d)) / 2

The gradient of ``none`` is in expectation that of the reward, for whatever pi the pair is used again. As
rewards enter as differences alone, a constant added to all rewards of a prompt changes nothing; their size
matters, not only which is higher. All pairs of a group's graded answers are used: with ``group = 2`` those of
the paper. The unit is the pair. It reads the batch of ``rollout``; ``separate`` reaches slightly higher
rewards in the paper and moves further from the reference, ``joint`` is the steadier one.

Pairs may lie in different micro-batches and on different ranks (``core/contrast.py``): with ``accumulate``
the forward pass is taken twice. Logs ``ratio`` (mean of rho), ``clipped`` (share of pairs whose clip acts),
``kl`` (mean over answers of log old - log ref) and the mismatch of sampling and training (``_sampled.py``),
which stops the stage as in ``grpo``.

The exact formulas of the two clips are not public but in the paper, of which this is written after the
authors' own summary: the range of ``joint`` is taken as above, ``separate`` as in PPO with the advantages d/2
and -d/2. Left out: the training of the reward model (``bradley_terry``).

Not with very long answers: the ratio of a whole answer is clipped at once. Judge it by reward against
divergence over checkpoints, not by the last reward.

Errors: a batch that is not of ``rollout``; what ``dpo`` says of its reference; a mismatch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainwright.align._pairs import check_reference, frozen
from trainwright.align._sampled import (
    FARTHEST,
    MOST_MISMATCH,
    NOTHING,
    SMALL,
    learned_of,
    mismatched,
    need,
    note_mismatch,
    ratio_of,
    stops,
    trimmed,
)
from trainwright.core.context import Context, View
from trainwright.core.method import Batch, Command, Controller, Objective, State
from trainwright.core.settings import Between, Positive, Rate
from trainwright.core.stage import Role
from trainwright.families import evaluating
from trainwright.lm.logprobs import token_logprobs
from trainwright.lm.losses import way_of


class P3o(Objective, Controller):
    """The pairwise policy gradient, one number a pair."""

    clip: Literal["joint", "separate", "none"] = "joint"
    """What is clipped: one ratio of the pair, that of each answer, or nothing."""
    epsilon: Annotated[float, Between(0, 1)] = 0.2
    """How far a ratio may be from 1."""
    beta: Rate = 0.05
    """Factor of the divergence from the reference in the reward; 0 needs no reference."""
    reference: Literal["model", "adapter_off"] = "model"
    """The reference: a frozen model, or the model with its adapters off."""
    most_mismatch: Positive = MOST_MISMATCH
    """Half the mean squared difference of the log-probabilities of sampling and training that stops the
    stage."""
    roles: ClassVar[dict[str, Role]] = {"reference": Role(needed=True, instead="model")}
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    contrasts: ClassVar[bool] = True
    beside: ClassVar[tuple[dict[str, Any], ...]] = ({"use": "rollout", **SMALL},)

    def asks(self) -> dict[str, Role]:
        return self.roles if self.beta and self.reference == "model" else {}

    def init(self, model: nn.Module, ctx: Context) -> State:
        if self.beta:
            check_reference(self.name, self.reference, model, ctx)
        way_of(model)                                          # runs it once, which is no cost of a step
        return {}

    def tick(self, view: View, state: State) -> Iterable[Command]:
        yield from mismatched(view, self.most_mismatch)

    def count(self, batch: Batch) -> float:
        """Half of an answer's pairs are its own."""
        need(self.name, batch)
        there = learned_of(batch).any(1)
        others = (batch["group_graded"].sum(1) - 1).clamp(min=0)
        return max(float((there * others).sum()) / 2, NOTHING)

    def represent(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Batch:
        """Of each answer its summed log-probabilities, its reward and its group [R]."""
        rows = trimmed(batch)
        learned = learned_of(rows)
        logp = token_logprobs(model, rows, batch["temperature"]).logp
        moved = torch.where(learned, logp - rows["logp"], 0)
        old, reward = torch.where(learned, rows["logp"], 0).sum(1), batch["reward"].float()
        if self.beta:
            with torch.no_grad(), frozen(self.reference, model, ctx) as other, evaluating(other):
                apart = old - token_logprobs(other, rows, batch["temperature"]).logp.sum(1)
            reward = reward - self.beta * apart
            if torch.is_grad_enabled() and (many := int(learned.any(1).sum())):
                ctx.note("kl", apart[learned.any(1)].mean(), weight=many)
        if torch.is_grad_enabled():  # with micro-batches this is the second pass
            note_mismatch(moved.detach(), learned, batch, ctx)
        return {
            "moved": moved.sum(1),
            "reward": reward,
            "group": batch["group"],
            "there": learned.any(1).long(),
        }

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        """Of each answer half of the losses of its pairs [R]."""
        moved, reward = batch["moved"], batch["reward"].detach()
        better = reward[:, None] - reward
        values, clipped = self.pair_loss(moved[:, None], moved, better)
        there = batch["there"] > 0
        pairs = (batch["group"][:, None] == batch["group"]) & there[:, None] & there
        pairs.fill_diagonal_(False)
        if many := int(pairs.sum()):
            ctx.note("clipped", clipped[pairs].float().mean(), weight=many)
            ctx.note("ratio", ratio_of(moved.detach()[there]).mean(), weight=many)
        return torch.where(pairs, values, 0).sum(1) / 2

    def pair_loss(self, first: Tensor, second: Tensor, better: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of pairs and whether the clip acts, given the log-ratios of their answers and how much
        better the first is."""
        low, high = 1 - self.epsilon, 1 + self.epsilon
        if self.clip == "separate":
            one, two = ratio_of(first), ratio_of(second)
            gain = torch.minimum(one * better, one.clamp(low, high) * better)
            gain = gain - torch.maximum(two * better, two.clamp(low, high) * better)
            acts = stops(one, better, self.epsilon, self.epsilon)
            return -gain / 2, acts | stops(two, -better, self.epsilon, self.epsilon)
        apart, weight = first - second, ratio_of((first + second).detach())
        if self.clip == "none":
            return -weight * better * apart / 2, torch.zeros_like(better, dtype=torch.bool)
        acts = stops(apart.detach().clamp(-FARTHEST, FARTHEST).exp(), better, self.epsilon, self.epsilon)
        return torch.where(acts, 0, -weight.clamp(low, high) * better * apart / 2), acts
