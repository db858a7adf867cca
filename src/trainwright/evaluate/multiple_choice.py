"""Questions with given choices: the one that is likeliest behind its question is the model's answer.

    score(choice) = log p(choice | question) / n,    n = 1, or its tokens, or its bytes in UTF-8 (``divide``)

A question is a document whose metadata has ``choices``, a list of texts, and ``answer``, the right one: its
text, its number from 0 on, or its letter. JSON lines with ``question``, ``choices`` and ``answer`` are read
by ``text`` with ``field = "question"``. The question goes through the chat template where the document is a
conversation; otherwise a space stands between it and a choice. Nothing is generated. As an evaluator it
measures

    multiple_choice     share of right answers, with Wilson's interval of 95 % (``_low``, ``_high``)
    _ungraded           documents without choices, or without a right one among them
    _chance             the mean of 1 / choices

As a task, ``grade`` is 1 for an answer that is the right choice's text or letter, and nothing else.

Long choices have low sums: divide by bytes where they differ in length, and say which was taken, since
published numbers differ by it. Not for choices of which the model should have read all, as where one is "none
of these": put them into the question, and let the choices be their letters.

Errors: no tokenizer; no question with choices; a question that leaves no room for a choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Task
from trainwright.core.settings import Count
from trainwright.corpus.columns import METADATA
from trainwright.evaluate._solving import Split, facts, of_corpus, rate
from trainwright.families import evaluating
from trainwright.lm.asking import COLUMNS, asked, question_of
from trainwright.lm.generation import room
from trainwright.lm.losses import padded, token_losses

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Choices(NamedTuple):
    """The choices of a question, and the number of the right one."""

    texts: tuple[str, ...]
    right: int


class MultipleChoice(Task):
    """The share of questions whose right choice is the likeliest."""

    choices: tuple[str, ...] = ()
    """The choices of documents that have none, the first of which is right: to try it."""
    divide: Literal["sum", "tokens", "bytes"] = "bytes"
    """By what a choice's log-probability is divided."""
    split: Split = "test"
    """Which documents of the corpus."""
    domains: tuple[str, ...] = ()
    """Domains; all of the corpus' where none is named."""
    most: Count = 500
    """Most questions, chosen by a hash of their ids."""
    batch_size: Count = 32
    """Choices that are scored at once."""
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    makes: ClassVar[tuple[str, ...]] = ("multiple_choice", "multiple_choice_*")
    example: ClassVar[dict[str, Any]] = {"choices": ["yes", "no"], "domains": ["chat"], "most": 3}

    def grade(self, prompt: str, answer: str) -> float:
        """By the choices of the settings; ``grader`` knows those of the documents."""
        return chosen(Choices(self.choices, 0), answer) if self.choices else math.nan

    def grader(self, ctx: Context) -> Callable[[str, str], float]:
        known = {question: self._of(told) for question, told in facts(ctx).items()}

        def grade(prompt: str, answer: str) -> float:
            found = known.get(prompt)
            return math.nan if found is None else chosen(found, answer)

        return grade

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        if ctx.tokenizer is None:
            raise UserError("multiple_choice: the model has no tokenizer.")
        rows = of_corpus(self.name, ctx, self.split, self.domains, self.most, (*COLUMNS, METADATA))
        told = facts(ctx)
        known = [(row, found) for row in rows if (found := self._of(told[question_of(row)])) is not None]
        if not known:
            raise UserError(
                "multiple_choice: no document has choices, and a right one among them, in its metadata."
            )
        scores = iter(self._scores(model, ctx, known).tolist())
        grades, chance = [], 0.0
        for _, one in known:
            mine = [next(scores) for _ in one.texts]
            grades.append(float(mine.index(max(mine)) == one.right))
            chance += 1 / len(one.texts)
        return rate(self.name, [*grades, *[math.nan] * (len(rows) - len(known))]) | {
            f"{self.name}_chance": chance / len(known)
        }

    def _of(self, told: Mapping[str, Any]) -> Choices | None:
        texts, right = told.get("choices"), told.get("answer")
        if not isinstance(texts, list) or len(texts) < 2:
            return Choices(self.choices, 0) if self.choices else None
        texts = tuple(map(str, texts))
        if isinstance(right, str) and right in texts:
            return Choices(texts, texts.index(right))
        place = LETTERS.find(right) if isinstance(right, str) and len(right) == 1 else right
        fits = isinstance(place, int) and not isinstance(place, bool) and 0 <= place < len(texts)
        return Choices(texts, place) if fits else None

    def _scores(self, model: nn.Module, ctx: Context, known: Sequence[tuple[Any, Choices]]) -> Tensor:
        """Of all choices, question by question."""
        rows, sizes = [], []
        for row, one in known:
            question = asked(row, model, ctx.tokenizer, self.name)
            for text in one.texts:
                said = text if row["messages"] or row["prompt"] else f" {text}"
                ids = ctx.tokenizer(said, add_special_tokens=False)["input_ids"]
                room(model, len(question.ids) + len(ids) - 1, 1, self.name)
                whole = [*question.ids, *ids]
                targets = [t if i >= len(question.ids) else UNTRAINED for i, t in enumerate(whole)][1:]
                rows.append((whole[:-1], targets))
                sizes.append({"sum": 1, "tokens": len(ids), "bytes": len(text.encode())}[self.divide])
        found = []
        for at in range(0, len(rows), self.batch_size):
            with torch.no_grad(), evaluating(model):
                losses = token_losses(model, padded(rows[at : at + self.batch_size], ctx), ctx)
            found.append(-losses.double().sum(1).cpu())
        return torch.cat(found) / torch.tensor(sizes, dtype=torch.float64).clamp(min=1)


def chosen(one: Choices, answer: str) -> float:
    """Whether an answer is the right choice, by its text or its letter, and nothing else."""
    return float(answer.strip().removesuffix(".") in (one.texts[one.right], LETTERS[one.right]))
