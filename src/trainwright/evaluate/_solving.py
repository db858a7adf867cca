"""How many prompts of a corpus a model answers right, by the grades of a task."""
from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from torch import nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Task
from trainwright.corpus.columns import ID, MESSAGES, PROMPT, TEXT
from trainwright.corpus.tokens import open_corpus, uniform
from trainwright.lm.asking import COLUMNS, asked
from trainwright.lm.generation import Prompt, room, written

Split = Literal["train", "tune", "test"]


class Solved(NamedTuple):
    """A prompt, what a model said, and its grade, NaN where there is none."""

    prompt: str
    answer: str
    grade: float


def of_corpus(who: str, ctx: Context, split: Split, domains: tuple[str, ...],
              most: int) -> list[dict[str, Any]]:
    """Documents of a corpus that ask something, chosen by a hash of their ids."""
    found = open_corpus(ctx.path("data")).examples(split, domains)
    order = sorted(range(len(found)), key=lambda i: uniform(found.ids[i], who))[:most]
    if not order:
        raise UserError(f"{who}: the split {split!r} has no prompts.")
    return found.rows(order, COLUMNS)


def of_texts(texts: Sequence[str], ctx: Context) -> list[dict[str, Any]]:
    """Texts as documents that ask them: a user's message where there is a chat template."""
    chat = ctx.tokenizer is not None and ctx.tokenizer.chat_template is not None
    return [{ID: text, TEXT: text, PROMPT: None,
             MESSAGES: json.dumps([{"role": "user", "content": text}]) if chat else None} for text in texts]


def solved(task: Task, model: nn.Module, ctx: Context, rows: Sequence[dict[str, Any]], new_tokens: int,
           temperature: float, batch_size: int) -> list[Solved]:
    """The model's answers to documents, and their grades."""
    if ctx.tokenizer is None:
        raise UserError(f"{task.name}: the model has no tokenizer, so that it cannot answer.")
    questions = [asked(row, model, ctx.tokenizer, task.name) for row in rows]
    prompts = [Prompt(q.ids, room(model, len(q.ids), new_tokens, task.name),
                      ctx.rng(f"{task.name}/{i}", at=0).initial_seed(), temperature)
               for i, q in enumerate(questions)]
    said = written(model, ctx.tokenizer, prompts, ctx, batch_size=batch_size, top_k=0)
    answers = [ctx.tokenizer.decode(ids, skip_special_tokens=True) for ids in said]
    return [Solved(q.text, a, task.grade(q.text, a)) for q, a in zip(questions, answers, strict=True)]


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
