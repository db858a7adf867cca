"""Distilling step-by-step: learn a large model's reasons beside its answers, as a second task.

"Distilling Step-by-Step! Outperforming Larger Language Models with Less Training Data and Smaller Model
Sizes" (arXiv 2305.02301). Half of the documents have the answer to a question as what is learned, half the
reasons that a large model gave for it (``with_rationales``; they are told apart by their ``domain``). With
the token losses l of each half,

    loss = alpha mean_answers(l) + (1 - alpha) mean_reasons(l)

each a mean over the tokens of its own half: in one mean the longer reasons would have most of the weight. In
a recipe that is this method twice,

    { use = "distilling_step_by_step", half = "answers", weight = 0.5 },
    { use = "distilling_step_by_step", half = "reasons", weight = 0.5 },

behind ``{ use = "examples", fields = ["text"] }``. Each reads the rows of its half, so that both together
cost what one objective costs on all of them. When the model is used, only the question is asked.

Equal steps are not equal compute: compare with answers alone on as many tokens, and with reasons that were
dealt out at random. Not for reasons and answer in one text, which is the ablation that needs the reasons when
it is used, nor behind ``pack``: a row with both halves is read twice.

Errors: a corpus without reasons; a step in which a half has no token.
"""
from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch, Objective, State
from trainwright.corpus.tokens import open_corpus
from trainwright.lm.losses import field, token_losses, trained_tokens


class DistillingStepByStep(Objective):
    """Cross-entropy of the tokens of one half of the documents; 0 elsewhere."""

    half: Literal["answers", "reasons"] = "answers"
    """Which documents are learned."""
    reasons: tuple[str, ...] = ("explain",)
    """Domains whose documents are reasons; all others are answers."""
    example: ClassVar[dict[str, Any]] = {}

    def init(self, model: nn.Module, ctx: Context) -> State:
        if self.half == "reasons" and ctx.inputs.get("data"):
            known = open_corpus(ctx.path("data")).domains
            if not set(known) & set(self.reasons):
                raise UserError(f"distilling_step_by_step: the corpus has the domains {', '.join(known)}, "
                                f"and none of {', '.join(self.reasons)}: with_rationales makes one.")
        return {}

    def targets(self, batch: Batch) -> Tensor:
        """Those of the half, -100 elsewhere; all of a batch without reasons, as before there is a corpus."""
        if "domains" not in batch:
            raise UserError("distilling_step_by_step: the rows do not say of which domain they are: make "
                            "them by examples or pack.")
        named = [name in self.reasons for name in batch["domains"]]
        if not any(named):
            named = [self.half == "reasons" for _ in named]
        reasons = torch.tensor(named, device=batch["domain"].device)[batch["domain"]]
        mine = reasons if self.half == "reasons" else ~reasons
        return field(batch, "targets").masked_fill(~mine, UNTRAINED)

    def count(self, batch: Batch) -> float:
        return trained_tokens(batch | {"targets": self.targets(batch)})

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        targets = self.targets(batch)
        rows = (targets != UNTRAINED).any(1).nonzero()[:, 0]
        if not len(rows):
            rows = rows.new_zeros(1)             # with nothing to learn: every rank makes the same passes
        tensors = {n: t[rows] for n, t in batch.items() if isinstance(t, Tensor) and len(t) == len(targets)}
        some = token_losses(model, batch | tensors | {"targets": targets[rows]}, ctx)
        values = some.new_zeros(targets.shape).index_copy(0, rows, some)
        units = float((targets != UNTRAINED).sum())
        ctx.note(f"train_loss/{self.half}", values.detach().sum() / max(1.0, units), weight=units)
        return values
