"""Further pretraining that holds hidden states to a teacher: the same start, already pretrained further.

"Self-Distillation for Further Pre-training of Transformers" (arXiv 2210.02871). Left out are the masks that
the paper puts over parts of an input: a causal model has none, and both models read the same tokens. In three
stages, from pretrained w0:

    1. teacher: from w0, further pretraining on the target texts with the plain loss;
    2. student: again from w0, not from the teacher, on the same texts, with
           loss = plain loss + weight |f(x) - f_teacher(x)|^2,
       where f(x) [H] is the final hidden state of a position, and no gradient flows into the teacher;
    3. fine-tuning of the student.

This is the second term; name it beside ``next_token``, with ``from = { model = "base", teacher = "teacher", …
}``. The squared distance is the sum over the H entries, as in the paper's norm, averaged over positions;
where another width is to be regularized alike, ``weight`` falls as 1 / H. For more rounds let the student be
the teacher of the next one, which also starts from w0.

The target texts are trained on twice: compare it with further pretraining of twice the length. It costs a
second forward and backward pass, and the teacher's forward pass; the teacher is whole on each rank. Do not
use it where there are many target texts: it is a regularizer.

Errors: no teacher; a teacher of another width; a student that starts from the teacher's weights.
"""
from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Batch, Objective, State
from trainwright.core.stage import Role
from trainwright.lm import distillation
from trainwright.lm.losses import trained_tokens


class SelfDistillationFurtherPretraining(Objective):
    """Squared distance from a teacher's hidden states, a number a position; 0 where nothing is learned."""

    roles: ClassVar[dict[str, Role]] = {"teacher": Role(needed=True)}
    example: ClassVar[dict[str, Any]] = {}

    def init(self, model: nn.Module, ctx: Context) -> State:
        teacher = dict(distillation.frozen_model(self.name, "teacher", ctx).named_parameters())
        started = (
            ctx.folder is not None and ctx.step == 0
        )  # in a plan both may have weights that nobody trained
        if started and all(
            n in teacher and torch.equal(sharding.full(p), teacher[n]) for n, p in model.named_parameters()
        ):
            raise UserError(
                "self_distillation_further_pretraining: the student starts from the teacher's own weights, "
                "so that there is nothing to learn from it: from.model must be the start of both, "
                "from.teacher a stage that went on from it."
            )
        return {}

    def count(self, batch: Batch) -> float:
        return trained_tokens(batch)

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        values = distillation.distance(model, ctx.frozen["teacher"], batch, summed=True)
        units = trained_tokens(batch)
        ctx.note("distillation/teacher", values.detach().sum() / max(1.0, units), weight=units)
        return values
