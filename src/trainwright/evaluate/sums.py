"""Arithmetic as a task: an answer is graded by the value of what is asked.

    grade = 1    the answer is the value of the first "A + B", "A - B" or "A * B" in the prompt, and nothing
                 else (but for a full stop and spaces around it)
            0    it is anything else
            NaN  the prompt has no such term: not graded

Nothing but the number counts as right, so that an answer that lists many numbers earns nothing.
``arithmetic_questions`` makes corpora of such prompts by levels: the digits of the longer number. A stage of
reinforcement takes it as ``{ use = "rollout", task = { use = "sums" } }``; as an evaluator it measures, of
prompts of the corpus, the share ``sums`` with Wilson's interval of 95 % (``sums_low``, ``sums_high``), the
same by level (``sums/1`` …), and ``sums_ungraded``, the prompts that are left out.

Not a measure of what a model knows of mathematics: it is a task whose every answer a program can check.

Errors: no tokenizer; no prompt that can be graded; conversations without a chat template.
"""
from __future__ import annotations

import math
import re
from typing import Any, ClassVar

from torch import nn

from trainwright.core.context import Context
from trainwright.core.method import Task
from trainwright.core.settings import Count, Rate
from trainwright.evaluate._solving import Split, of_corpus, of_texts, rate, solved

TERM = re.compile(r"(\d+) *([-+*]) *(\d+)")


class Sums(Task):
    """Sums, differences and products of two whole numbers, right or wrong."""

    questions: tuple[str, ...] = ()
    """What to ask instead of the prompts of the corpus."""
    split: Split = "test"
    """Which documents of the corpus."""
    domains: tuple[str, ...] = ()
    """Domains; all of the corpus' where none is named."""
    most: Count = 200
    """Most prompts, chosen by a hash of their ids."""
    new_tokens: Count = 16
    """Tokens of an answer at most."""
    temperature: Rate = 0.0
    """Temperature at which the answers are drawn; 0 takes the likeliest."""
    batch_size: Count = 64
    """Prompts that are answered at once."""
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    makes: ClassVar[tuple[str, ...]] = ("sums", "sums_*", "sums/*")
    example: ClassVar[dict[str, Any]] = {"questions": ["What is 3 + 4?", "What is 12 - 5?"],
                                         "new_tokens": 2}

    def grade(self, prompt: str, answer: str) -> float:
        term = TERM.search(prompt)
        if term is None:
            return math.nan
        return float(answer.strip().removesuffix(".") == str(value(term)))

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        rows = (of_texts(self.questions, ctx) if self.questions
                else of_corpus(self.name, ctx, self.split, self.domains, self.most))
        found = solved(self, model, ctx, rows, self.new_tokens, self.temperature, self.batch_size)
        by_level: dict[int, list[float]] = {}
        for one in found:
            if term := TERM.search(one.prompt):
                by_level.setdefault(max(len(term[1]), len(term[3])), []).append(one.grade)
        told = rate(self.name, [one.grade for one in found])
        return told | {f"{self.name}/{level}": sum(grades) / len(grades)
                       for level, grades in sorted(by_level.items())}


def value(term: re.Match[str]) -> int:
    """The value of a term."""
    a, b = int(term[1]), int(term[3])
    return {"+": a + b, "-": a - b, "*": a * b}[term[2]]
