"""A rollout that tries again with a hint where every answer to a prompt has failed.

The sampling of "Adaptive Guidance Accelerates Reinforcement Learning of Reasoning Models" (arXiv 2506.13923);
``guide_rlvr`` is its loss. With a the mean grade (0 to 1) of a prompt's graded answers,

    0.001 <= a <= 0.999    the group is kept
    a > 0.999              it is dropped: nothing can be learned from it
    a < 0.001              as many answers are drawn to the prompt with a hint; they take the group's place if
                           their mean is in 0.001 .. 0.999, else the prompt is dropped

An answer to a hinted prompt stands behind the prompt without the hint, which is what is learned; its ``logp``
are those with which it was drawn, with the hint before it. So their ratio is that of the two contexts.

The hint of a document is ``hint`` of its metadata, or else the first ``part`` of its answer's characters,
"…" behind them; ``template`` puts it to the prompt. The batch is that of ``rollout``, with ``hinted`` int64
[R]; of dropped groups nothing is summed or counted. Logs, beside those of ``rollout`` (which are of the
answers without a hint), ``guide/failed`` (share of prompts whose answers all failed), ``guide/helped`` (share
of those that a hint made useful) and ``guide/dropped`` (share of prompts that teach nothing).

Left out: sampling until a batch is full of useful groups; dropped ones make it smaller.

Not where hints give the answer away: with ``part = 1`` the model copies, and the ratio of its answers is
nearly 0.

Errors: those of ``rollout``; a document without a hint.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from trainwright.align.rollout import Answer, Rollout, Try
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch, Data
from trainwright.core.settings import Between
from trainwright.corpus.columns import ID, METADATA
from trainwright.lm.asking import ANSWERED, Asked, answer_of, asked, reworded
from trainwright.lm.generation import room

LEAST = 0.001
"""Of a group's mean grade, and of what it lacks to 1."""
PROMPT, HINT = "{prompt}", "{hint}"


class HintedRollout(Rollout, Data):
    """Samples groups of answers, and with hints where all of a group are wrong."""

    hint: str = ""
    """Key of a document's metadata that holds its hint; without one, its answer's beginning is the hint."""
    part: Annotated[float, Between(0, 1)] = 0.5
    """Share of the answer's characters that the hint says."""
    template: str = "{prompt}\nHint: {hint}"
    """The prompt with its hint."""
    columns: ClassVar[tuple[str, ...]] = (*ANSWERED, METADATA)
    beside: ClassVar[tuple[dict[str, Any], ...]] = ({"use": "guide_rlvr"},)

    def __post_init__(self) -> None:
        super().__post_init__()
        if PROMPT not in self.template or HINT not in self.template:
            raise ValueError(f"template must have {PROMPT} and {HINT} in it")

    def _question(self, row: dict[str, Any], ctx: Context) -> Asked:
        if not self._hint(row):
            raise UserError(
                f"hinted_rollout: the document {row[ID]!r} has no hint: "
                + (
                    f"its metadata has no {self.hint!r}."
                    if self.hint
                    else "it has no answer that a hint could begin with."
                )
            )
        return super()._question(row, ctx)

    def _hint(self, row: dict[str, Any]) -> str:
        if self.hint:
            return str(json.loads(row[METADATA] or "{}").get(self.hint) or "")
        answer = answer_of(row)
        return answer and f"{answer[: max(1, round(self.part * len(answer)))]}…"

    def _with_hint(self, question: Asked, row: dict[str, Any], ctx: Context) -> Asked:
        """What is read instead; a task is told the prompt without the hint."""
        assert ctx.policy is not None
        given = reworded(row, lambda said: self.template.replace(HINT, self._hint(row)).replace(PROMPT, said))
        ids = asked(given, ctx.policy, ctx.tokenizer, self.name).ids
        if room(ctx.policy, len(ids), self.new_tokens, self.name) < self.new_tokens:
            raise UserError(
                f"hinted_rollout: a hinted prompt of {len(ids)} tokens leaves no room for "
                f"new_tokens = {self.new_tokens} in the positions of the model."
            )
        return Asked(question.text, ids)

    def _kept(
        self,
        questions: Sequence[Asked],
        rows: Sequence[dict[str, Any]],
        every: Sequence[Answer],
        first: int,
        ctx: Context,
    ) -> dict[str, Tensor]:
        failed = (self._means(every) < LEAST).nonzero()[:, 0].tolist()
        tries = [
            Try(self._with_hint(questions[p], rows[p], ctx), self._hinted_seed(first + p, k, ctx))
            for p in failed
            for k in range(self.group)
        ]
        again = self._answers(tries, ctx)
        answers, hinted = list(every), torch.zeros(len(every), dtype=torch.int64)
        for number, p in enumerate(failed):
            own = slice(p * self.group, (p + 1) * self.group)
            answers[own], hinted[own] = again[number * self.group : (number + 1) * self.group], 1
        means, kept = self._means(answers), self._rows(questions, answers)
        useful = (means >= LEAST) & (means <= 1 - LEAST)  # false for a group without grades
        dropped = ~useful.repeat_interleave(self.group)
        kept["targets"][dropped], kept["graded"][dropped] = UNTRAINED, 0
        ctx.note("guide/failed", len(failed) / self.prompts)
        if failed:
            ctx.note("guide/helped", float(useful[failed].float().mean()))
        ctx.note("guide/dropped", float((~useful).float().mean()))
        return kept | {"hinted": hinted}

    def _hinted_seed(self, prompt: int, k: int, ctx: Context) -> int:
        return ctx.rng(f"hinted_rollout/{prompt}/{k}").initial_seed()

    def _means(self, answers: Sequence[Answer]) -> Tensor:
        """The mean grade of each group; NaN where nothing of it is graded."""
        return torch.tensor([one.grade for one in answers]).view(-1, self.group).nanmean(1)

    def _batch(self, held: dict[str, Any], rows: Tensor, fresh: bool) -> Batch:
        return super()._batch(held, rows, fresh) | {"hinted": held["hinted"][rows]}
