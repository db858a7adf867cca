"""The form of an answer as a task: whether it matches a regular expression.

    grade = 1 where ``pattern`` matches the answer (all of it, unless ``whole = false``), else 0

As an evaluator it measures the share ``matches`` of prompts of the corpus with Wilson's interval of 95 %
(``matches_low``, ``matches_high``); as the task of a ``rollout`` it is a reward for following a format.

Not as the only reward where the content matters: the form is soon learned, and nothing else.

Errors: a pattern that is no regular expression; no tokenizer; conversations without a chat template.
"""
from __future__ import annotations

import re
from typing import Any, ClassVar

from torch import nn

from trainwright.core.context import Context
from trainwright.core.method import Task
from trainwright.core.settings import Count, Rate
from trainwright.evaluate._solving import Split, of_corpus, rate, solved


class Matches(Task):
    """Answers of a form, right or wrong."""

    pattern: str
    """The regular expression."""
    whole: bool = True
    """Whether all of the answer must match, or a part of it is enough."""
    split: Split = "test"
    """Which documents of the corpus."""
    domains: tuple[str, ...] = ()
    """Domains; all of the corpus' where none is named."""
    most: Count = 200
    """Most prompts, chosen by a hash of their ids."""
    new_tokens: Count = 64
    """Tokens of an answer at most."""
    temperature: Rate = 0.0
    """Temperature at which the answers are drawn; 0 takes the likeliest."""
    batch_size: Count = 64
    """Prompts that are answered at once."""
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    makes: ClassVar[tuple[str, ...]] = ("matches", "matches_*")
    example: ClassVar[dict[str, Any]] = {"pattern": "[aeiou]", "whole": False, "domains": ["chat"],
                                         "most": 4, "new_tokens": 2}

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern: {self.pattern!r} is no regular expression: {error}") from None

    def grade(self, prompt: str, answer: str) -> float:
        find = re.fullmatch if self.whole else re.search
        return float(find(self.pattern, answer) is not None)

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        rows = of_corpus(self.name, ctx, self.split, self.domains, self.most)
        found = solved(self, model, ctx, rows, self.new_tokens, self.temperature, self.batch_size)
        return rate(self.name, [one.grade for one in found])
