"""Answers of the student, or fresh ones of a teacher, in place of those of the corpus: where distillation
compares.

"On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes" (GKD, arXiv 2306.13649). A
``share`` of the rows that it pulls is cut behind the prompt and continued by tokens drawn at ``temperature``
from all that the ``writer`` may say; those are then what is learned:

    input_ids, targets, attention_mask, position_ids, document    int64 [R, L], of the new answers

``distill`` behind it compares the two models there. With ``writer = "student"`` that is where the student
will be, in its own mistakes; with ``"teacher"``, and ``supervised`` as the loss, it is "Sequence-Level
Knowledge Distillation" (arXiv 1606.07947) with samples. Such answers are new each time a prompt comes by.
With ``fixed = true`` each prompt has one answer for the whole run, as a set of answers that was written once:
what an online teacher is compared with (``teacher_hacking``). Each answer has a generator of its own, so that
neither the number of ranks nor an interruption changes it.

Rows hold one document each, ``{ use = "examples", fields = ["text"] }`` before it: of a conversation the
prompt is what is said before the first trained token, of a plain text the first ``prompt`` tokens.

Rows whose prompt leaves no room for ``new_tokens`` stay as they are. ``on_policy/share`` logs the share of
rows that were replaced.

It costs a forward pass for each new token. Not for models with dropout, which sample without it.

Errors: rows of several documents; no teacher; prompts of which none leaves room; a student that is fixed; no
tokenizer.
"""
from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainwright import families
from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch, Data, State
from trainwright.core.settings import Between, Count
from trainwright.core.stage import Role
from trainwright.lm import distillation
from trainwright.lm.generation import COLDEST, Prompt, sampled, writes
from trainwright.lm.losses import field


class OnPolicy(Data):
    """Replaces the answers of rows by sampled ones."""

    writer: Literal["student", "teacher"] = "student"
    """Whose answers."""
    share: Annotated[float, Between(0.0, 1.0)] = 1.0
    """Share of the rows that are replaced, drawn anew in each step."""
    fixed: bool = False
    """Whether a teacher has one answer for each prompt, the same in every pass."""
    prompt: Count = 1
    """Tokens at least that are given, and not learned."""
    new_tokens: Count = 64
    """Tokens of an answer at most."""
    temperature: Annotated[float, Between(COLDEST, 1 / COLDEST)] = 1.0
    """By which the scores are divided before a token is drawn."""
    sample_size: Count = 64
    """Answers that are sampled at once."""
    roles: ClassVar[dict[str, Role]] = {"teacher": Role(needed=True)}
    beside: ClassVar[tuple[dict[str, Any], ...]] = ({"use": "examples", "length": 24}, {"use": "distill"})
    example: ClassVar[dict[str, Any]] = {"new_tokens": 4, "prompt": 4}

    def __post_init__(self) -> None:
        if self.fixed and self.writer == "student":
            raise ValueError('fixed = true is for a teacher, which says the same in every pass: a student '
                             'changes')

    def asks(self) -> dict[str, Role]:
        return self.roles if self.writer == "teacher" else {}

    def init(self, model: nn.Module, ctx: Context) -> State:
        if ctx.decode:
            raise UserError(f"on_policy: {ctx.decode[0].name} changes what is sampled; leave it out, and "
                            "choose the temperature here.")
        if self.writer == "teacher":
            distillation.check_vocabulary(self.name, "teacher", model, ctx)
            model = ctx.frozen["teacher"]
        if ctx.tokenizer is None or not writes(model) or families.family_of(model).name != "causal_lm":
            raise UserError("on_policy: it needs a causal language model that writes text, and a tokenizer.")
        return {}

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        batch = pull()
        if batch.get("packed", True) or "attention_mask" not in batch:
            raise UserError('on_policy: rows of single documents are needed: take { use = "examples", fields '
                            '= ["text"] } as the data method before it.')
        prompts = [self._given(batch, row) for row in range(len(field(batch, "input_ids")))]
        first = (ctx.rows(ctx.batch_rows).start or 0) if ctx.batch_rows else 0
        chosen = [self._chosen(first + row, ctx) for row in range(len(prompts))]
        together = self.writer == "student" and sharding.world() > 1      # all ranks write equally many
        room = batch["input_ids"].shape[1] - self.new_tokens
        if all(len(ids) > room for ids in prompts):
            raise UserError(f"on_policy: no prompt leaves room for new_tokens = {self.new_tokens} in rows of "
                            f"{batch['input_ids'].shape[1]} tokens.")
        chosen = [wants and len(ids) <= room for wants, ids in zip(chosen, prompts, strict=True)]
        wanted = [row for row, wants in enumerate(chosen) if wants or together]
        asked = [Prompt(prompts[row][:room], self.new_tokens, self._seed(prompts[row], first + row, ctx),
                        self.temperature) for row in wanted]
        writer = ctx.policy if self.writer == "student" else ctx.frozen["teacher"]
        said = sampled(writer, ctx.tokenizer, asked, ctx, batch_size=self.sample_size, together=together)
        ctx.note("on_policy/share", sum(chosen) / len(chosen), weight=len(chosen))
        answers = {row: one.ids for row, one in zip(wanted, said, strict=True) if chosen[row]}
        return self._replaced(batch, prompts, answers)

    def preview(self, batch: Batch, ctx: Context) -> str:
        learned = batch["targets"][0] != UNTRAINED
        at, seen = int(learned.int().argmax()) + 1, int(batch["attention_mask"][0].sum())
        parts = [ctx.tokenizer.decode(ids.tolist()).replace("\n", "⏎")
                 for ids in (batch["input_ids"][0, :at], batch["input_ids"][0, at:seen])]
        return f"an answer, sampled between ⟦ ⟧ where the row was chosen: {parts[0]}⟦{parts[1]}⟧"

    def _given(self, batch: Batch, row: int) -> list[int]:
        """The prompt of a row."""
        learned, there = batch["targets"][row] != UNTRAINED, int(batch["attention_mask"][row].sum())
        if not there:
            raise UserError("on_policy: a document without tokens has no prompt.")
        begins = int(learned.int().argmax()) + 1 if learned.any() else there
        ids: list[int] = batch["input_ids"][row, :min(max(begins, self.prompt), there)].tolist()
        return ids

    def _chosen(self, row: int, ctx: Context) -> bool:
        return bool(torch.rand(1, generator=ctx.rng(f"on_policy/share/{row}")) < self.share)

    def _seed(self, prompt: list[int], row: int, ctx: Context) -> int:
        """What an answer is drawn from."""
        if not self.fixed:
            return ctx.rng(f"on_policy/{row}").initial_seed()
        key = hashlib.sha256(repr(prompt).encode()).hexdigest()
        return ctx.rng(f"on_policy/{key}", at=0).initial_seed()

    @staticmethod
    def _replaced(batch: Batch, prompts: list[list[int]], answers: dict[int, list[int]]) -> Batch:
        made = {name: batch[name].clone() for name in ("input_ids", "targets", "attention_mask")}
        for row, answer in answers.items():
            begin, end = len(prompts[row]), len(prompts[row]) + len(answer)
            for name, blank in (("input_ids", 0), ("targets", UNTRAINED), ("attention_mask", 0)):
                made[name][row] = blank
            told: Tensor = torch.tensor([*prompts[row], *answer])
            made["input_ids"][row, :end], made["attention_mask"][row, :end] = told, 1
            made["targets"][row, begin - 1:end - 1] = told[begin:]
        return batch | made | {"document": made["attention_mask"] - 1}
