"""Holds predictions or hidden states to those of the stage's start: distillation without old data.

"A Closer Look at Rehearsal-Free Continual Learning" (arXiv 2203.17269): its two distillations, which
accompany the penalties of ``rehearsal_free_cl``. The model in training and the frozen model from before (the
role ``reference``) read the new texts. For each position that is learned, with p the probabilities of the
next token and h [H] the final hidden state,

    prediction:  sum over words of p_before log(p_before / p)      (Learning without Forgetting)
    features:    mean over H of (h - h_before)^2,

which is 0 as long as the model is the old one. Times ``weight`` it is added to the loss of the new texts. The
paper's image models have a sigmoid for each class; a vocabulary has one softmax, hence the divergence.
Documents are read as they are packed.

Name the start in the recipe: ``from = { model = "base", reference = "base", … }``. It costs a second forward
and backward pass of the model and a forward pass of the reference, which is whole on each rank;
``prediction`` holds the logits of both. Do not use it on texts that the old model reads badly: it would be
held to its mistakes.

Errors: no reference; a reference of another width or vocabulary.
"""
from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Batch, Objective, State
from trainwright.core.stage import Role
from trainwright.lm import distillation
from trainwright.lm.losses import trained_tokens


class RehearsalFreeDistillation(Objective):
    """Distance from the frozen start on new texts, a number a position; 0 where nothing is learned."""

    how: Literal["prediction", "features"] = "prediction"
    """Compare the probabilities of the next token, or the final hidden states."""
    roles: ClassVar[dict[str, Role]] = {"reference": Role(needed=True)}
    example: ClassVar[dict[str, Any]] = {}

    def init(self, model: nn.Module, ctx: Context) -> State:
        other = distillation.frozen_model(self.name, "reference", ctx)
        tables = [m.get_input_embeddings() for m in (model, other)]  # type: ignore[operator]
        sizes = [t.num_embeddings for t in tables]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"rehearsal_free_distillation: the reference has {sizes[1]} tokens, the model {sizes[0]}: "
                "take the model that the stage starts from."
            )
        return {}

    def count(self, batch: Batch) -> float:
        return trained_tokens(batch)

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        compare = distillation.divergence if self.how == "prediction" else distillation.distance
        values = compare(model, ctx.frozen["reference"], batch)
        units = trained_tokens(batch)
        ctx.note(f"distillation/{self.how}", values.detach().sum() / max(1.0, units), weight=units)
        return values
