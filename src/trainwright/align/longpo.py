"""LongPO: what a model prefers given a short passage, it learns to prefer given the long text.

"LongPO: Long Context Self-Evolution of Large Language Models through Short-to-Long Preference Optimization"
(arXiv 2502.13922). With x_long and x_short the long and the short prompt of one question, y+ and y- the
model's own answers to the short and to the long one, pi the model and ref what it was before, at its own
positions:

    d    = [log pi(y+|x_long) - log ref(y+|x_short)] - [log pi(y-|x_long) - log ref(y-|x_short)]
    loss = nll(x_long, y+) + preference * ( - log sigmoid(beta d) )

Sums over the answers' tokens; nll is the mean over *all* tokens of the long chosen sequence, the document and
the question too, as in the authors' code. The policy reads the long prompt and the reference the short one:
that is the constraint which keeps what the model could do with short texts, and the difference from ``dpo``,
whose reference reads what the policy reads.

It takes pairs of ``long_pairs`` after ``{ use = "reference_log_probs", prompt = "short" }``, through ``{ use
= "examples", fields = ["chosen", "rejected", "reference"] }``; the loop divides by the number of pairs. Logs
``rewards/margins`` (beta d) and ``nll``.

Not without the long answers of the model itself as rejected. The paper's settings: beta and preference 0.01,
a rate of 5e-7 with RMSprop, one epoch, and lengths that double from iteration to iteration, each from the
model of the last.

Errors: a batch without pairs or without what the reference made of them; no reference.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainwright.align._pairs import SIDES, check_reference, need, reference_pairs, rows_of, teaching
from trainwright.core.context import Context
from trainwright.core.method import UNTRAINED, Batch, Objective, State
from trainwright.core.settings import Positive, Rate
from trainwright.core.stage import Role
from trainwright.lm.losses import token_losses


class Longpo(Objective):
    """The loss of a short-to-long preference pair, one number a pair."""

    beta: Positive = 0.01
    """How strongly the model is held to its reference."""
    preference: Rate = 0.01
    """Factor of the preference; that of the likelihood is 1."""
    reference: Literal["column", "model"] = "column"
    """Where the reference's log-probabilities come from: the column, made with the short prompt; or a frozen
    model that reads the long one, as in DPO, to compare with."""
    roles: ClassVar[dict[str, Role]] = {"reference": Role(needed=True, instead="model")}
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    example: ClassVar[dict[str, Any]] = {"reference": "model", "preference": 1.0}
    beside: ClassVar[tuple[dict[str, Any], ...]] = (
        {"use": "examples", "fields": ["chosen", "rejected"], "domains": ["chat"], "length": 32},
    )

    def asks(self) -> dict[str, Role]:
        return self.roles if self.reference == "model" else {}

    def init(self, model: nn.Module, ctx: Context) -> State:
        check_reference(self.name, self.reference, model, ctx)
        return {}

    def count(self, batch: Batch) -> float:
        return float(teaching(self.name, batch).sum())

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        learned = teaching(self.name, batch)
        if self.reference == "column":
            need(self.name, batch, [f"{side}_reference" for side in SIDES])
        other = reference_pairs(self.reference, model, batch, ctx, packed=False)
        whole = whole_rows(batch)
        losses = token_losses(model, whole, ctx)
        answer = torch.cat([batch[f"{side}_targets"] for side in SIDES]) != UNTRAINED
        logp = -torch.where(answer[:, : losses.shape[1]], losses, 0).sum(1)
        chosen, rejected = logp.chunk(2)
        apart = (chosen - other.chosen) - (rejected - other.rejected)
        tokens = (whole["targets"] != UNTRAINED).sum(1).chunk(2)[0]
        nll = losses.chunk(2)[0].sum(1) / tokens.clamp(min=1)
        if many := int(learned.sum()):
            ctx.note("rewards/margins", (self.beta * apart[learned]).mean().detach(), weight=many)
            ctx.note("nll", nll[learned].mean().detach(), weight=many)
        return torch.where(learned, nll - self.preference * F.logsigmoid(self.beta * apart), 0)


def whole_rows(batch: Batch) -> Batch:
    """The chosen answers with all of their tokens as targets, then the rejected ones with their own."""
    rows = rows_of(batch)
    ids, seen = rows["input_ids"], rows["attention_mask"] > 0
    every = torch.full_like(ids, UNTRAINED)
    every[:, :-1] = torch.where(seen[:, 1:], ids[:, 1:], UNTRAINED)
    chosen = torch.arange(len(ids), device=ids.device)[:, None] < len(ids) // 2
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return {
        "input_ids": ids,
        "targets": torch.where(chosen, every, rows["targets"]),
        "position_ids": places,
        "packed": False,
    }
