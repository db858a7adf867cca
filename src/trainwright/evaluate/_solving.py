"""How many prompts of a corpus a model answers right, by the grades of a task; what tasks share that measure
that (``Solving``)."""
from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

from torch import nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Task
from trainwright.core.settings import Count, Rate
from trainwright.corpus.columns import ID, MESSAGES, METADATA, PROMPT, TEXT
from trainwright.corpus.tokens import open_corpus, uniform
from trainwright.lm.asking import COLUMNS, asked, question_of
from trainwright.lm.generation import Prompt, room, written

Split = Literal["train", "tune", "test"]
ANSWER = "answer"


class Solved(NamedTuple):
    """A prompt, what a model said, and its grade, NaN where there is none."""

    prompt: str
    answer: str
    grade: float


class Solving(Task):
    """A task that measures how many prompts are answered right: of the corpus, or its own questions."""

    questions: tuple[str, ...] = ()
    """What to ask instead of the prompts of the corpus."""
    split: Split = "test"
    """Which documents of the corpus."""
    domains: tuple[str, ...] = ()
    """Domains; all of the corpus' where none is named."""
    most: Count = 200
    """Most prompts, chosen by a hash of their ids."""
    new_tokens: Count = 32
    """Tokens of an answer at most."""
    temperature: Rate = 0.0
    """Temperature at which the answers are drawn; 0 takes the likeliest."""
    batch_size: Count = 64
    """Prompts that are answered at once."""
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        rows = (of_texts(self.questions, ctx) if self.questions
                else of_corpus(self.name, ctx, self.split, self.domains, self.most))
        found = solved(self, model, ctx, rows, self.new_tokens, self.temperature, self.batch_size)
        return rate(self.name, [one.grade for one in found]) | self.more(found)

    def more(self, found: Sequence[Solved]) -> dict[str, float]:
        """What else is told of the answers, by name."""
        return {}


class Question(NamedTuple):
    """What a task asks."""

    prompt: str
    answer: str
    """One that is right."""
    told: Mapping[str, Any] = MappingProxyType({})
    """What grading needs to know beside the prompt; it goes into the document's metadata."""


class Asking(Solving):
    """A task that makes questions too, for ``task_questions``."""

    def question(self, draw: random.Random, level: int) -> Question:
        """One of some difficulty."""
        raise NotImplementedError


def of_corpus(who: str, ctx: Context, split: Split, domains: tuple[str, ...],
              most: int, columns: Sequence[str] = COLUMNS) -> list[dict[str, Any]]:
    """Documents of a corpus that ask something, chosen by a hash of their ids."""
    found = open_corpus(ctx.path("data")).examples(split, domains)
    order = sorted(range(len(found)), key=lambda i: uniform(found.ids[i], who))[:most]
    if not order:
        raise UserError(f"{who}: the split {split!r} has no prompts.")
    return found.rows(order, columns)


def of_texts(texts: Sequence[str], ctx: Context) -> list[dict[str, Any]]:
    """Texts as documents that ask them: a user's message where there is a chat template."""
    chat = ctx.tokenizer is not None and ctx.tokenizer.chat_template is not None
    return [{ID: text, TEXT: text, PROMPT: None,
             MESSAGES: json.dumps([{"role": "user", "content": text}]) if chat else None} for text in texts]


def facts(ctx: Context) -> dict[str, dict[str, Any]]:
    """What the documents of the corpus say of each question: their metadata and, under ``answer`` where that
    has none, the last answer. Of several documents with one question, the first."""
    return _facts(ctx.path("data"))


@lru_cache(maxsize=2)
def _facts(folder: Path) -> dict[str, dict[str, Any]]:
    """Read once in a process: a rollout asks for them again and again."""
    corpus, found = open_corpus(folder), dict[str, dict[str, Any]]()
    for split in ("train", "tune", "test"):
        documents = corpus.examples(split, ())
        for row in documents.rows(list(range(len(documents))), (*COLUMNS, METADATA)):
            told = json.loads(row[METADATA] or "{}")
            turns = json.loads(row[MESSAGES] or "[]")
            if turns and turns[-1]["role"] == "assistant":
                told = {ANSWER: turns[-1].get("content") or ""} | told
            found.setdefault(question_of(row), told)
    return found


def solved(task: Task, model: nn.Module, ctx: Context, rows: Sequence[dict[str, Any]], new_tokens: int,
           temperature: float, batch_size: int) -> list[Solved]:
    """The model's answers to documents, and their grades."""
    if ctx.tokenizer is None:
        raise UserError(f"{task.name}: the model has no tokenizer, so that it cannot answer.")
    questions, grade = [asked(row, model, ctx.tokenizer, task.name) for row in rows], task.grader(ctx)
    prompts = [Prompt(q.ids, room(model, len(q.ids), new_tokens, task.name),
                      ctx.rng(f"{task.name}/{i}", at=0).initial_seed(), temperature)
               for i, q in enumerate(questions)]
    said = written(model, ctx.tokenizer, prompts, ctx, batch_size=batch_size, top_k=0)
    answers = [ctx.tokenizer.decode(ids, skip_special_tokens=True) for ids in said]
    return [Solved(q.text, a, grade(q.text, a)) for q, a in zip(questions, answers, strict=True)]


def rate(name: str, grades: Sequence[float]) -> dict[str, float]:
    """The share of grades that are 1, with Wilson's interval of 95 %; those that are NaN are left out, and
    counted as ``NAME_ungraded``."""
    from scipy.stats import binomtest
    given = [g for g in grades if not math.isnan(g)]
    if not given:
        raise UserError(f"{name}: none of the {len(grades)} prompts can be graded: are they of this task?")
    right = sum(g == 1 for g in given)
    interval = binomtest(right, len(given)).proportion_ci(method="wilson")
    return {name: right / len(given), f"{name}_low": float(interval.low),
            f"{name}_high": float(interval.high), f"{name}_ungraded": float(len(grades) - len(given))}
