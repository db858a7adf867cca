"""Distillation: a student learns a teacher's predictions, or its hidden states, instead of the text's words.

"Distilling the Knowledge in a Neural Network" (arXiv 1503.02531), with the divergences of "On-Policy
Distillation of Language Models" (GKD, arXiv 2306.13649). For each position that is learned, with q(T) the
student's probabilities of the next token and p(T) the teacher's, both of logits divided by a temperature T,

    forward          T^2 KL(p || q)          covers all that the teacher might say
    reverse          T^2 KL(q || p)          keeps to what the teacher says often
    jensen_shannon   T^2 (b KL(p || m) + (1 - b) KL(q || m)),   m = b p + (1 - b) q,   b = ``share``
    hidden           mean over H of (h - h_teacher)^2, of the final hidden states [H]
    blocks           the same behind each block, averaged over the student's; of a deeper teacher every m/n-th

where q, p [vocabulary] are float32 and no gradient flows into the teacher. Times ``weight`` it is added to
the stage's other losses; alone, the text says only where to compare. Any pair of one vocabulary fits, also
of other widths and depths, as long as predictions are compared.

The teacher is a second model in memory, ``from = { teacher = "NAME", … }``, or was asked once for all:
``teacher = "column"`` reads what ``teacher_logits`` has kept, the K likeliest words and their probabilities,
from ``{ use = "examples", fields = ["text", "teacher"] }``; all other words then count as one.

What is compared are the texts of the corpus. With ``{ use = "on_policy" }`` behind ``examples`` the student's
own answers take their place, which is what it will write itself. The paper's gradient goes through the
probabilities of tokens, not through the choice of what is sampled; so does this one.

Do not use ``forward`` on answers that the student samples alone from the start, when it says nothing that the
teacher would. It costs a forward pass of the teacher, and the logits of both [tokens, vocabulary] in memory.

Errors: no teacher; another vocabulary; hidden states of other widths, or a depth of the teacher that is no
multiple of the student's; a column of other tokens; the teacher's hidden states, which no column holds.
"""
from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Batch, Objective, State
from trainwright.core.settings import Between
from trainwright.core.stage import Role
from trainwright.lm import distillation
from trainwright.lm.losses import trained_tokens

STATES = ("hidden", "blocks")
"""What compares hidden states."""


class Distill(Objective):
    """Distance from a teacher, a number a position; 0 where nothing is learned."""

    compare: Literal["forward", "reverse", "jensen_shannon", "hidden", "blocks"] = "forward"
    """A divergence of predictions, or a distance of hidden states."""
    temperature: Annotated[float, Between(0.01, 100.0)] = 1.0
    """By which the logits of both are divided."""
    share: Annotated[float, Between(0.01, 0.99)] = 0.5
    """Of the teacher in the mixture of jensen_shannon."""
    teacher: Literal["model", "column"] = "model"
    """A frozen model, or what teacher_logits wrote of it."""
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    roles: ClassVar[dict[str, Role]] = {"teacher": Role(needed=True)}
    example: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        if self.teacher == "column" and self.compare in STATES:
            raise ValueError(f'compare = {self.compare!r} needs the teacher itself: a column holds its '
                             'predictions alone')

    def asks(self) -> dict[str, Role]:
        return self.roles if self.teacher == "model" else {}

    def init(self, model: nn.Module, ctx: Context) -> State:
        if self.teacher == "model" and self.compare in STATES:
            distillation.frozen_model(self.name, "teacher", ctx)
        elif self.teacher == "model":
            distillation.check_vocabulary(self.name, "teacher", model, ctx)
        return {}

    def count(self, batch: Batch) -> float:
        return trained_tokens(batch)

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        values = self.values(model, batch, ctx)
        units = trained_tokens(batch)
        ctx.note(f"distillation/{self.compare}", values.detach().sum() / max(1.0, units), weight=units)
        return values

    def values(self, model: nn.Module, batch: Batch, ctx: Context) -> Tensor:
        """Of each position [R, L]."""
        if self.compare == "hidden":
            return distillation.distance(model, ctx.frozen["teacher"], batch)
        if self.compare == "blocks":
            return distillation.block_distance(model, ctx.frozen["teacher"], batch)
        how = self.compare, self.temperature, self.share
        if self.teacher == "model":
            told = distillation.divergence(model, ctx.frozen["teacher"], batch, *how)
        elif "teacher_ids" in batch:
            told = distillation.divergence_of_known(model, batch, *how)
        else:
            raise UserError('distill: the batch has no teacher: take { use = "examples", fields = ["text", '
                            '"teacher"] } as the data method, of a corpus that teacher_logits has seen.')
        return told * self.temperature**2
