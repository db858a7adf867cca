"""How often a model writes what is unwanted, where that is known by its form.

Each of ``most`` held-out documents is begun with its first ``prompt`` tokens, and the model goes on by
``new_tokens``, drawn at ``temperature``. A line that one of ``patterns`` matches anywhere is unwanted:

    unwanted          share of the lines written that are unwanted, empty ones not counted
    unwanted_texts    share of the texts with such a line, with Wilson's interval (``_low``, ``_high``)

What was begun in the prompt counts as the model's from the first token that it wrote itself. The patterns are
those that ``phf`` takes, so that what is marked in training is what is counted. The stage's decoding methods
(``behind_good``) shape what is drawn.

Not a measure of harm: only what a pattern finds is counted, and a model that learned to avoid the pattern and
not what it stands for looks well.

Errors: no pattern, or one that is no regular expression; no tokenizer; a prompt that fills all positions.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from torch import nn

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Evaluator
from trainwright.core.settings import Count, Rate
from trainwright.corpus.columns import TEXT
from trainwright.evaluate._solving import Split, of_corpus, rate
from trainwright.lm.generation import Prompt, room, written


class Unwanted(Evaluator):
    """The share of unwanted lines in what a model writes."""

    patterns: tuple[str, ...]
    """Regular expressions of what is unwanted in a line."""
    split: Split = "test"
    """Whose documents are begun."""
    domains: tuple[str, ...] = ()
    """Domains; all of the corpus' where none is named."""
    most: Count = 200
    """Most documents, chosen by a hash of their ids."""
    prompt: Count = 16
    """Tokens of a document that the model reads."""
    new_tokens: Count = 64
    """Tokens that it writes at most."""
    temperature: Rate = 1.0
    """Temperature at which they are drawn; 0 takes the likeliest."""
    batch_size: Count = 64
    """Texts that are written at once."""
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    makes: ClassVar[tuple[str, ...]] = ("unwanted", "unwanted_*")
    example: ClassVar[dict[str, Any]] = {
        "patterns": ["[aeiou]"], "domains": ["prose"], "most": 4, "prompt": 4, "new_tokens": 4,
    }

    def __post_init__(self) -> None:
        if not self.patterns:
            raise ValueError("patterns names nothing that is unwanted")
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"patterns: {pattern!r} is no regular expression: {error}") from None

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        if ctx.tokenizer is None:
            raise UserError("unwanted: the model has no tokenizer, so that it cannot write.")
        rows = [r for r in of_corpus(self.name, ctx, self.split, self.domains, self.most) if r[TEXT]]
        begun = [families.prompt(model, ctx.tokenizer, str(row[TEXT]))[: self.prompt] for row in rows]
        if not begun:
            raise UserError(f"unwanted: the split {self.split!r} has no text to begin with.")
        prompts = [
            Prompt(
                ids,
                room(model, len(ids), self.new_tokens, self.name),
                ctx.rng(f"{self.name}/{i}", at=0).initial_seed(),
                self.temperature,
            )
            for i, ids in enumerate(begun)
        ]
        said = written(model, ctx.tokenizer, prompts, ctx, batch_size=self.batch_size, top_k=0)
        texts = [ctx.tokenizer.decode(ids, skip_special_tokens=True) for ids in said]
        found = [self.counted(text) for text in texts]
        lines, bad = sum(n for _, n in found), sum(n for n, _ in found)
        return {"unwanted": bad / max(1, lines)} | rate("unwanted_texts", [float(n > 0) for n, _ in found])

    def counted(self, text: str) -> tuple[int, int]:
        """Of a text: its unwanted lines, and all that are not empty."""
        lines = [line for line in text.splitlines() if line.strip()]
        return sum(any(re.search(p, line) for p in self.patterns) for line in lines), len(lines)
