"""Kahneman-Tversky optimization: from answers that are marked as good or bad, without pairs.

"KTO: Model Alignment as Prospect Theoretic Optimization" (arXiv 2402.01306). With pi the model, ref the
frozen reference and y an answer to x that is good (desirable) or bad,

    r = log pi(y|x) - log ref(y|x)                                             a sum over the answer's tokens
    z = max(0, mean over the step of log pi(y'|x) - log ref(y'|x))             y' the answer to another prompt
    loss = desirable (1 - sigmoid(beta (r - z)))      of a good answer
           undesirable (1 - sigmoid(beta (z - r)))    of a bad one             the loop divides by the answers

z estimates how far the model has moved from its reference; no gradient flows through it. It is one number for
all rows of a step, on all ranks and in all micro-batches. y' is the answer of the neighbouring row, so that
rows come in twos; where prompt and answer together are longer than a row, the prompt loses its beginning.
``apo_zero`` has z = 0 (arXiv 2408.06266) and saves two of four forward passes.

It reads ``{ use = "examples", fields = ["text", "label"] }`` from conversations with the label 1 or true
(good) and 0 or false (bad), as ``prompt``, ``completion``, ``label`` of a file make them; or, with
``fields = ["chosen", "rejected"]``, the two answers of each pair as a good and a bad one. Answers of which
the length of a row leaves nothing are neither summed nor counted. Logs ``rewards/chosen`` and
``rewards/rejected`` (beta r of good and bad answers), ``rewards/margins`` and ``kl`` (z).

Where the good answers are many times as many as the bad ones, ``undesirable`` is to make up for it: the paper
has desirable x good / (undesirable x bad) from 1 to 4/3. Not where pairs are at hand and good: ``dpo`` learns
more from those. The reference is that of ``dpo``.

Errors: a batch without labels or pairs, or with a label that is neither 0 nor 1; a number of rows in a
micro-batch that is odd; what ``dpo`` says of its reference.
"""
from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainwright.align._pairs import SIDES, check_isolation, check_reference, frozen, rows_of
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch, Objective, State
from trainwright.core.settings import Positive
from trainwright.core.stage import Role
from trainwright.families import evaluating
from trainwright.lm.logprobs import answer_logprobs


class Kto(Objective):
    """How much better or worse than expected an answer is, one number an answer."""

    variant: Literal["kto", "apo_zero"] = "kto"
    """Whether the model's distance from its reference is the point of comparison, or nothing is."""
    beta: Positive = 0.1
    """How strongly the model is held to its reference."""
    desirable: Positive = 1.0
    """Weight of good answers."""
    undesirable: Positive = 1.0
    """Weight of bad answers."""
    reference: Literal["model", "adapter_off"] = "model"
    """Where the reference's log-probabilities come from: a frozen model, or the model with its adapters
    off."""
    packed: bool = True
    """Compute several answers in one row, without padding; the result is the same."""
    contrasts: ClassVar[bool] = True
    roles: ClassVar[dict[str, Role]] = {"reference": Role(needed=True, instead="model")}
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    beside: ClassVar[tuple[dict[str, Any], ...]] = (
        {"use": "examples", "fields": ["chosen", "rejected"], "domains": ["chat"], "length": 32},)

    def asks(self) -> dict[str, Role]:
        return self.roles if self.reference == "model" else {}

    def init(self, model: nn.Module, ctx: Context) -> State:
        check_reference(self.name, self.reference, model, ctx)
        check_isolation(self.name, self.packed, model, ctx)
        return {}

    def count(self, batch: Batch) -> float:
        rows, _ = _answers(batch)
        if len(rows["targets"]) % 2 or ("chosen_ids" in batch and len(batch["chosen_ids"]) % 2):
            raise UserError("kto: a micro-batch has an odd number of rows, and the distance from the "
                            "reference is measured on two at a time: let "
                            "batch_size be a multiple of 2, of accumulate "
                            "and of the number of ranks.")
        return float((rows["targets"] != UNTRAINED).any(1).sum())

    def represent(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Batch:
        """Of each answer its log-probability under both models, that of its neighbour's after its prompt as a
        log-ratio, whether it is good, and whether it teaches anything: [R, answers of a row] each."""
        rows, good = _answers(batch)
        learned = (rows["targets"] != UNTRAINED).any(1)
        with torch.no_grad(), frozen(self.reference, model, ctx) as other, evaluating(other):
            reference = answer_logprobs(other, rows, ctx, self.packed).logp
        moved, both = torch.zeros_like(reference), learned & learned[_neighbours(len(learned), learned)]
        if self.variant == "kto":
            moved = self._moved(model, exchanged(rows), ctx)
        made = {"logp": answer_logprobs(model, rows, ctx, self.packed).logp, "reference": reference,
                "moved": moved, "good": good.long(), "learned": learned.long(), "both": both.long()}
        return {name: t.view(-1, len(batch.get("chosen_ids", good))).T for name, t in made.items()}

    @torch.no_grad()
    def _moved(self, model: nn.Module, rows: Batch, ctx: Context) -> Tensor:
        with evaluating(model):
            mine = answer_logprobs(model, rows, ctx, self.packed).logp
        with frozen(self.reference, model, ctx) as other, evaluating(other):
            return mine - answer_logprobs(other, rows, ctx, self.packed).logp

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        """``batch``: what ``represent`` made of all rows of the step."""
        good, learned = batch["good"] > 0, batch["learned"] > 0
        both = batch["both"].to(batch["moved"].dtype)
        z = ((batch["moved"] * both).sum() / both.sum().clamp(min=1)).clamp(min=0).detach()
        ratio = batch["logp"] - batch["reference"]
        values = torch.where(good, self.desirable * torch.sigmoid(self.beta * (z - ratio)),
                             self.undesirable * torch.sigmoid(self.beta * (ratio - z)))
        ctx.note("kl", z)
        told = {name: (self.beta * ratio.detach())[learned & which].mean()
                for name, which in (("chosen", good), ("rejected", ~good)) if (learned & which).any()}
        for name, reward in told.items():
            ctx.note(f"rewards/{name}", reward)
        if len(told) == 2:
            ctx.note("rewards/margins", told["chosen"] - told["rejected"])
        return torch.where(learned, values, 0)


def _answers(batch: Batch) -> tuple[Batch, Tensor]:
    """The answers of a batch as rows of their own, and which are good: of pairs the chosen ones, then the
    rejected."""
    if all(f"{side}_ids" in batch for side in SIDES):
        rows, pairs = rows_of(batch), len(batch["chosen_ids"])
        return rows, torch.arange(2 * pairs, device=rows["targets"].device) < pairs
    if not {"labels", "input_ids", "attention_mask"} <= set(batch):
        raise UserError('kto: the batch has no labels: take { use = "examples", fields = ["text", "label"] '
                        '}, or of pairs fields = ["chosen", "rejected"], as the data method.')
    if not ((batch["labels"] == 0) | (batch["labels"] == 1)).all():
        raise UserError("kto: a label is 1 (a good answer) or 0 (a bad one), and the batch has another.")
    return {name: batch[name] for name in ("input_ids", "attention_mask", "targets")}, batch["labels"] > 0


def _neighbours(many: int, like: Tensor) -> Tensor:
    """For each row the one whose answer it is given: 1 for 0, 0 for 1, 3 for 2 …"""
    return torch.arange(many, device=like.device) ^ 1


def exchanged(rows: Batch) -> Batch:
    """Rows with the prompt of each and the answer of its neighbour. The answer is what follows the token that
    predicts its first."""
    ids, seen, targets = (rows[name] for name in ("input_ids", "attention_mask", "targets"))
    many, length = ids.shape
    made = {"input_ids": torch.zeros_like(ids), "attention_mask": torch.zeros_like(seen),
            "targets": torch.full_like(targets, UNTRAINED)}
    first, end = (targets != UNTRAINED).int().argmax(1).tolist(), seen.sum(1).tolist()
    for row, other in enumerate(_neighbours(many, ids).tolist()):
        answer = ids[other, first[other] + 1:end[other]][:length - 1]
        prompt = ids[row, :first[row] + 1][-(length - len(answer)):]
        whole = len(prompt) + len(answer)
        made["input_ids"][row, :whole] = torch.cat([prompt, answer])
        made["attention_mask"][row, :whole] = 1
        learned = targets[other, first[other]:first[other] + len(answer)]
        made["targets"][row, len(prompt) - 1:whole - 1] = learned
    return made
