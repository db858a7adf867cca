"""How often a model ranks the chosen answer of a held-out preference pair above the rejected one.

    preference_accuracy = (pairs with s(y+) > s(y-), and half of those with s(y+) = s(y-)) / pairs
    preference_margin   = mean over the pairs of s(y+) - s(y-)

with ``preference_accuracy_low`` and ``_high``, Wilson's interval of 95 % for a share of so many pairs. ``by``
says what s is:

    reward      the reward of a model with a ``reward_head``
    reference   log pi(y|x) - log ref(y|x), DPO's implicit reward without its factor (arXiv 2305.18290);
                ``from.reference`` names the model that the other one started from
    likelihood  log pi(y|x) / tokens of y: what a plain language model has to say

Pairs of equal answers, and those of which ``length`` leaves no answer, are left out; ``preference_pairs`` is
how many are measured.

Not as the only number of a model that is to write: it ranks answers of others, and does not write its own.

Errors: a corpus without pairs; no reward head or no reference where ``by`` asks for one.
"""
from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from trainwright import families
from trainwright.align._pairs import SIDES, rows_of, teaching
from trainwright.align._rewards import rewards
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Batch, Evaluator
from trainwright.core.settings import Count, Row
from trainwright.core.stage import Role
from trainwright.corpus.inputs import Inputs
from trainwright.corpus.tokens import open_corpus, uniform
from trainwright.families import evaluating
from trainwright.lm.logprobs import answer_logprobs


class PreferenceAccuracy(Evaluator):
    """Measures ``preference_accuracy``, its interval, ``preference_margin`` and ``preference_pairs``."""

    by: Literal["reward", "reference", "likelihood"] = "reward"
    """What ranks the answers: a reward head, the log-ratio to a reference, or the mean log-likelihood."""
    split: Literal["train", "tune", "test"] = "test"
    """Which documents of the corpus."""
    domains: tuple[str, ...] = ()
    """Domains; all of the corpus' where none is named."""
    pairs: Count = 1000
    """How many at most, chosen by a hash of their ids."""
    length: Row = 512
    """Tokens of prompt and answer at most."""
    batch_size: Count = 16
    """Pairs of a forward pass."""
    roles: ClassVar[dict[str, Role]] = {"reference": Role(needed=True)}
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    makes: ClassVar[tuple[str, ...]] = ("preference_*",)
    beside: ClassVar[tuple[dict[str, Any], ...]] = (
        {"use": "examples", "fields": ["chosen", "rejected"], "domains": ["chat"], "length": 32},
        {"use": "reward_head"}, {"use": "bradley_terry"})
    example: ClassVar[dict[str, Any]] = {"length": 32, "batch_size": 4, "domains": ["chat"]}

    def asks(self) -> dict[str, Role]:
        return self.roles if self.by == "reference" else {}

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        corpus = open_corpus(ctx.path("data"))
        inputs = Inputs(corpus, SIDES, self.length, tokenizer=None if corpus.tokenizer else ctx.tokenizer)
        found, other = corpus.examples(self.split, self.domains), self._reference(ctx)
        order = np.argsort([uniform(name, self.name) for name in found.ids], kind="stable")
        chosen, apart = np.sort(order[:self.pairs]), []
        for numbers in np.array_split(chosen, -(-len(chosen) // self.batch_size)):
            made = inputs.batch(found.rows(numbers.tolist(), inputs.columns))
            batch = {n: torch.from_numpy(a).to(ctx.device) for n, a in made.items()}
            with torch.no_grad(), evaluating(model):
                better, worse = self._scores(model, other, rows_of(batch), ctx).chunk(2)
            apart.append((better - worse)[teaching(self.name, batch)].double().cpu())
        return numbers_of(torch.cat(apart))

    def _reference(self, ctx: Context) -> nn.Module | None:
        if self.by != "reference":
            return None
        if "reference" in ctx.frozen:
            return ctx.frozen["reference"]
        other: nn.Module = families.load(ctx.path("reference"), self.name)
        return other.to(ctx.device).eval()

    def _scores(self, model: nn.Module, other: nn.Module | None, rows: Batch, ctx: Context) -> Tensor:
        if self.by == "reward":
            return rewards(model, rows)
        logp, tokens = answer_logprobs(model, rows, ctx, packed=False)
        if other is None:
            return logp / tokens.clamp(min=1)
        return logp - answer_logprobs(other, rows, ctx, packed=False).logp


def numbers_of(apart: Tensor) -> dict[str, float]:
    """What is measured of pairs, given by how much the chosen answer is above the other [pairs]."""
    from scipy.stats import binomtest
    if not len(apart):
        raise UserError("preference_accuracy: no pair is left to measure: both answers are equal, or cut "
                        "away.")
    right = float((apart > 0).sum() + 0.5 * (apart == 0).sum())
    interval = binomtest(int(right), len(apart)).proportion_ci(method="wilson")
    share = right / len(apart)
    return {"preference_accuracy": share, "preference_accuracy_low": min(share, float(interval.low)),
            "preference_accuracy_high": max(share, float(interval.high)),
            "preference_margin": float(apart.mean()), "preference_pairs": float(len(apart))}
