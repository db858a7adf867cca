"""Holds predictions or hidden states to those of the stage's start: distillation without old data.

"A Closer Look at Rehearsal-Free Continual Learning" (arXiv 2203.17269): its two distillations, which
accompany the penalties of ``rehearsal_free_cl``. The model in training and the frozen model from before (the
role ``reference``) read the new texts. For each position that is learned, with p the probabilities of the
next token and h [H] the final hidden state,

    prediction:  sum over words of p_before log(p_before / p)      (Learning without Forgetting)
    features:    mean over H of (h - h_before)^2,

which is 0 as long as the model is the old one. Times ``weight`` it is added to the loss of the new texts.
Documents are read as they are packed. A vocabulary has one softmax, hence the divergence; the paper's models
sort images into classes, each of which has a sigmoid of its own. That is ``how = "classes"``, for documents,
in place of ``label``: over the logits z [C] of the classes seen so far, ``old`` and the corpus' labels,

    classes:  mean over C of BCE(sigmoid(z_c), t_c),   t_c = sigmoid(z_before_c) for the classes ``old``,
                                                       and 1 for the label and 0 for the other new ones.

Unlike a softmax it does not push old logits down to raise new ones. The first stage of a sequence has no
``old`` and needs no reference; its ``classifier`` names the classes of all stages.

Name the start in the recipe: ``from = { model = "base", reference = "base", … }``. It costs a second forward
and backward pass of the model and a forward pass of the reference, which is whole on each rank;
``prediction`` holds the logits of both. Do not use it on texts that the old model reads badly: it would be
held to its mistakes.

Errors: no reference; a reference of another width or vocabulary; for classes a model, or a reference, without
a classifier, and a class that it does not know.
"""
from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Batch, Objective, State
from trainwright.core.stage import Role
from trainwright.corpus.tokens import open_corpus
from trainwright.lm import distillation
from trainwright.lm.classes import class_logits, head_of, wanted
from trainwright.lm.losses import trained_tokens


class RehearsalFreeDistillation(Objective):
    """Distance from the frozen start on new texts, a number a position; 0 where nothing is learned."""

    how: Literal["prediction", "features", "classes"] = "prediction"
    """Compare the probabilities of the next token, the final hidden states, or those of classes."""
    old: tuple[str, ...] = ()
    """For classes: those of earlier stages, on which the reference has the word."""
    roles: ClassVar[dict[str, Role]] = {"reference": Role(needed=True)}
    families: ClassVar[tuple[str, ...]] = ("causal_lm", "seq2seq", "masked_lm")
    example: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        if self.old and self.how != "classes":
            raise ValueError('old names classes, which only how = "classes" compares.')

    def asks(self) -> dict[str, Role]:
        return self.roles if self.how != "classes" or self.old else {}

    def init(self, model: nn.Module, ctx: Context) -> State:
        if self.how == "classes":
            self.check_classes(model)
            if self.old:
                self.check_classes(distillation.frozen_model(self.name, "reference", ctx))
            return {}
        other = distillation.frozen_model(self.name, "reference", ctx)
        tables = [m.get_input_embeddings() for m in (model, other)]  # type: ignore[operator]
        sizes = [t.num_embeddings for t in tables]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"rehearsal_free_distillation: the reference has {sizes[1]} tokens, the model {sizes[0]}: "
                "take the model that the stage starts from."
            )
        return {}

    def check_classes(self, model: nn.Module) -> None:
        known = head_of(model).settings.classes
        if unknown := [name for name in self.old if name not in known]:
            raise UserError(
                f"rehearsal_free_distillation: old names the class {unknown[0]!r}, and the classifier knows "
                f"{', '.join(map(repr, known))}."
            )

    def count(self, batch: Batch) -> float:
        if self.how != "classes":
            return trained_tokens(batch)
        if "labels" not in batch:
            raise UserError('rehearsal_free_distillation: the batch has no labels: take { use = "examples", '
                            'fields = ["text", "label"] } as the data method.')
        return float(len(batch["labels"]))

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        if self.how == "classes":
            return self.of_classes(model, batch, ctx)
        compare = distillation.divergence if self.how == "prediction" else distillation.distance
        values = compare(model, ctx.frozen["reference"], batch)
        units = trained_tokens(batch)
        ctx.note(f"distillation/{self.how}", values.detach().sum() / max(1.0, units), weight=units)
        return values

    def of_classes(self, model: nn.Module, batch: Batch, ctx: Context) -> Tensor:
        """Binary cross-entropy, a mean over the classes seen so far, for each document."""
        corpus, classes = open_corpus(ctx.path("data")), head_of(model).settings.classes
        logits, right = class_logits(model, batch), wanted(model, batch["labels"], corpus)
        targets = F.one_hot(right, len(classes)).to(logits)
        if self.old:
            reference = ctx.frozen["reference"]
            theirs = head_of(reference).settings.classes
            with torch.no_grad():
                before = class_logits(reference, batch).sigmoid()
            for name in self.old:
                targets[:, classes.index(name)] = before[:, theirs.index(name)]
        seen = [i for i, name in enumerate(classes) if name in (*self.old, *corpus.labels)]
        told = torch.tensor(seen, device=right.device)[logits.detach()[:, seen].argmax(1)]
        ctx.note("train_accuracy", (told == right).float().mean(), weight=len(right))
        return F.binary_cross_entropy_with_logits(logits[:, seen], targets[:, seen], reduction="none").mean(1)
