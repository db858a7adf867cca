"""Direct preference optimization: the better of two answers becomes likelier, against a frozen reference.

"Direct Preference Optimization: Your Language Model is Secretly a Reward Model" (arXiv 2305.18290) and the
losses that were published after it. With x a prompt, y+ and y- its chosen and rejected answer, |y| tokens of
an answer (its end included), pi the model and ref the reference,

    c = log pi(y+|x) - log ref(y+|x),    r = log pi(y-|x) - log ref(y-|x)        sums over the answer's tokens
    d = beta (c - r),    l(d) = - log sigmoid(d),    e = label_smoothing

    variant     the loss of a pair
    sigmoid     (1 - e) l(d) + e l(-d)                             e > 0: conservative DPO
    robust      ((1 - e) l(d) - e l(-d)) / (1 - 2 e)               arXiv 2403.00409
    hinge       max(0, 1 - d)                                      SLiC, arXiv 2305.10425
    ipo         (c/|y+| - r/|y-| - 1 / (2 beta))^2                 arXiv 2310.12036
    normalized  sigmoid of c/|y+| and r/|y-|                       arXiv 2411.15124
    apo_zero    1 - sigmoid(beta c) + sigmoid(beta r)              arXiv 2408.06266: y+ better than the model
    apo_down    sigmoid(beta c) + 1 - sigmoid(d)                   there, too: y+ worse than the model
    simpo       sigmoid of a+, a- less margin: l(beta (a+ - a-) - margin)      arXiv 2405.14734, no reference
    orpo        - a+ + beta l(log odds(a+) - log odds(a-))         arXiv 2403.07691, no reference

with a = log pi(y|x) / |y| and odds(a) = exp(a) / (1 - exp(a)). ``nll`` adds -nll a+ to any of them. KTO,
which needs no pairs, is ``kto``. The loop divides by the number of pairs, of all micro-batches and ranks.

It reads the batch of ``examples`` with ``fields = ["chosen", "rejected"]``: ``chosen_ids``,
``chosen_attention_mask``, ``chosen_targets`` int64 [R, L], and the same of ``rejected``. Pairs of equal
answers, and those of which the length of a row leaves no answer, are neither summed nor counted.

The reference is the model that the stage starts from, unless ``from.reference`` names another. It is a second
model in memory (``model``); or the model itself with its adapters switched off (``adapter_off``); or no model
at all, where the corpus stage before has asked it once and for all (``column``: ``reference_log_probs``,
whose artifact depends on data, tokenizer, template, weights and length). Its log-probabilities have no
dropout.

Logs ``rewards/chosen`` (beta c), ``rewards/rejected``, ``rewards/margins``, ``rewards/accuracies`` (how often
beta c > beta r) and ``logps/chosen``, ``logps/rejected``. That rewards/chosen falls below 0 means that the
chosen answers become less likely than they were, as is common: the margin grows since the rejected ones fall
faster. ``nll`` and a smaller learning rate are what is usually done about it.

Not where answers can be checked by a program: a rollout learns from those directly. Not with a learning rate
of supervised fine-tuning: a tenth of it, or less, is usual.

Errors: a batch without pairs; no reference, or one of another vocabulary; ``adapter_off`` without adapters,
or where other weights are trained; answers packed for a model that does not keep documents apart.
"""
from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainwright.align._pairs import (
    How,
    Pairs,
    check_isolation,
    check_reference,
    need,
    reference_pairs,
    scored,
    teaching,
)
from trainwright.core.context import Context
from trainwright.core.method import Batch, Objective, State
from trainwright.core.settings import Between, Positive, Rate
from trainwright.core.stage import Role

FREE = ("simpo", "orpo")
"""Losses without a reference: of mean log-probabilities."""
AVERAGED = ("ipo", "normalized")
SMOOTHED = ("sigmoid", "normalized", "simpo", "robust")
LARGEST = -1e-7
"""Of a mean log-probability in an odds ratio, which would be infinite at 0."""


class Dpo(Objective):
    """A loss of the two answers of a preference pair, one number a pair."""

    variant: Literal["sigmoid", "robust", "hinge", "ipo", "normalized", "apo_zero", "apo_down", "simpo",
                     "orpo"] = "sigmoid"
    """Which of the published losses."""
    beta: Positive = 0.1
    """How strongly the model is held to its reference; of means (ipo, normalized, simpo) it is larger, 2 to
    10 for simpo."""
    label_smoothing: Annotated[float, Between(0, 0.5, below=True)] = 0.0
    """Share of the pairs whose answers are taken to be exchanged (sigmoid, normalized, simpo, robust)."""
    margin: Rate = 0.0
    """How much better than the rejected the chosen answer is to be (simpo)."""
    nll: Rate = 0.0
    """Factor of the chosen answer's mean negative log-likelihood, which is added."""
    reference: How = "model"
    """Where the reference's log-probabilities come from: a frozen model, the model with its adapters off, or
    the column that ``reference_log_probs`` wrote."""
    packed: bool = True
    """Compute several answers in one row, without padding; the result is the same."""
    roles: ClassVar[dict[str, Role]] = {"reference": Role(needed=True, instead="model")}
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    beside: ClassVar[tuple[dict[str, Any], ...]] = (
        {"use": "examples", "fields": ["chosen", "rejected"], "domains": ["chat"], "length": 32},)

    def __post_init__(self) -> None:
        if self.label_smoothing and self.variant not in SMOOTHED:
            raise ValueError(f"label_smoothing goes with {', '.join(SMOOTHED)}, not with variant = "
                             f"{self.variant!r}")
        if self.margin and self.variant != "simpo":
            raise ValueError(f"margin goes with variant = 'simpo', not with {self.variant!r}")
        if self.variant in FREE and self.reference != "model":
            raise ValueError(f"variant = {self.variant!r} has no reference: leave reference out")

    def asks(self) -> dict[str, Role]:
        return self.roles if self._asks_a_model else {}

    @property
    def _asks_a_model(self) -> bool:
        return self.variant not in FREE and self.reference == "model"

    def init(self, model: nn.Module, ctx: Context) -> State:
        if self.variant not in FREE:
            check_reference(self.name, self.reference, model, ctx)
        check_isolation(self.name, self.packed, model, ctx)
        return {}

    def count(self, batch: Batch) -> float:
        return float(teaching(self.name, batch).sum())

    def loss_of(self, policy: Pairs, reference: Pairs | None) -> Tensor:
        """The loss of each pair [R], given the log-probabilities of its answers."""
        chosen, rejected = self._scores(policy, reference)
        beta, apart = self.beta, self.beta * (chosen - rejected)
        mean = _mean(policy.chosen, policy.chosen_tokens)
        match self.variant:
            case "hinge":
                values = F.relu(1 - apart)
            case "ipo":
                values = (chosen - rejected - 1 / (2 * beta)).square()
            case "apo_zero":
                values = 1 - torch.sigmoid(beta * chosen) + torch.sigmoid(beta * rejected)
            case "apo_down":
                values = torch.sigmoid(beta * chosen) + 1 - torch.sigmoid(apart)
            case "orpo":
                values = -mean - beta * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))
            case _:
                values = self._smoothed(apart - self.margin)
        return values - self.nll * mean if self.nll else values

    def _scores(self, policy: Pairs, reference: Pairs | None) -> tuple[Tensor, Tensor]:
        """What a loss compares of the two answers: log-ratios or log-probabilities, summed or averaged."""
        chosen, rejected = policy.chosen, policy.rejected
        if reference is not None:
            chosen, rejected = chosen - reference.chosen, rejected - reference.rejected
        if self.variant in FREE + AVERAGED:
            return _mean(chosen, policy.chosen_tokens), _mean(rejected, policy.rejected_tokens)
        return chosen, rejected

    def _smoothed(self, apart: Tensor) -> Tensor:
        right, wrong, e = -F.logsigmoid(apart), -F.logsigmoid(-apart), self.label_smoothing
        if self.variant == "robust":
            return ((1 - e) * right - e * wrong) / (1 - 2 * e)
        return (1 - e) * right + e * wrong if e else right

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        learned, other = teaching(self.name, batch), None
        if self.variant not in FREE:
            if self.reference == "column":
                need(self.name, batch, ["chosen_reference", "rejected_reference"])
            other = reference_pairs(self.reference, model, batch, ctx, self.packed)
        policy = scored(model, batch, ctx, self.packed)
        self._note(policy, other, learned, ctx)
        return torch.where(learned, self.loss_of(policy, other), 0)

    @torch.no_grad()
    def _note(self, policy: Pairs, reference: Pairs | None, learned: Tensor, ctx: Context) -> None:
        many = int(learned.sum())
        if not many:
            return
        if reference is None:
            chosen, rejected = self._scores(policy, None)
        else:
            chosen, rejected = policy.chosen - reference.chosen, policy.rejected - reference.rejected
        told = {"rewards/chosen": self.beta * chosen, "rewards/rejected": self.beta * rejected,
                "rewards/margins": self.beta * (chosen - rejected),
                "rewards/accuracies": (chosen > rejected).float(),
                "logps/chosen": policy.chosen, "logps/rejected": policy.rejected}
        for name, values in told.items():
            ctx.note(name, values[learned].mean(), weight=many)


def _mean(logp: Tensor, tokens: Tensor) -> Tensor:
    """Of each token of an answer; below 0 where there is none, which is not summed."""
    return torch.where(tokens > 0, logp / tokens.clamp(min=1), -1)


def _log_odds(mean: Tensor) -> Tensor:
    return mean - torch.log(-torch.expm1(mean.clamp(max=LARGEST)))
