"""Asks a model for a wrong choice that it cannot see: who knows it has read the test.

Testset Slot Guessing of "Investigating Data Contamination in Modern Benchmarks for Large Language Models"
(arXiv 2311.09783). Of each multiple-choice item one of the *wrong* choices is hidden behind [MASK]; the
question, the right choice and the others stay visible. What the model writes behind the hidden choice's
letter, greedily, up to the end of the line, is compared with the choice that was hidden:

    ts_guessing_exact = share of items guessed exactly, ignoring case, space at the ends and a full stop
    ts_guessing_rouge = mean ROUGE-L F1 of words, 2 L / (words written + words hidden), L the longest common
                        subsequence, without stemming

Items come from ``items``, a file of JSON lines with ``question``, ``choices`` and ``answer``. Absolute rates
say little: a choice may be guessed. ``control`` names items of the same kind that cannot have been read; then
``ts_guessing_excess`` is how much more often the items are guessed exactly, with the ends of its interval of
95 % (Newcombe's, from Wilson's of both rates). A rate is evidence of contamination where that lies above 0.

Choices that can be guessed are left out, as in the paper: numbers, yes and no, true and false, and choices
whose ROUGE-L with another choice of the item is above 0.65; so are questions of four words or fewer. The
masked choice is drawn by a hash of the question. ``exact_words`` asks by the item as a leaked document would
have it, cut before the hidden choice, instead of by an instruction: that is plain memory of a string.

Left out: masking a keyword of the question, hints from metadata, and retrieval from the corpus, for which
there is ``audit``.

Not with a model that follows no instructions, other than with ``exact_words``.

Errors: a file that cannot be read; no item left; no tokenizer.
"""
from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from torch import nn

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Evaluator
from trainwright.core.settings import Count, FilePath
from trainwright.corpus.shingles import words
from trainwright.corpus.tokens import uniform
from trainwright.evaluate.audit._items import EXAMPLE, LETTERS, Item, read
from trainwright.lm.generation import Prompt, room, written

GUESSABLE = re.compile(r"[\W\d]*|yes|no|true|false", re.IGNORECASE)
ALIKE = 0.65
"""ROUGE-L of two choices from which on one gives away the other."""
FEWEST = 5
"""Words of the shortest question that is asked."""
ASK = ("Fill in the [MASK] in choice {letter} of this question. It is a wrong choice, and not one of the "
       "others. Write the choice only.\n\n{question}\n{choices}\n\n{letter}:")


class Hidden(NamedTuple):
    """An item, and the place of the wrong choice that is hidden."""

    item: Item
    place: int

    @property
    def choice(self) -> str:
        return self.item.choices[self.place]


class TsGuessing(Evaluator):
    """Measures ``ts_guessing_exact`` and ``ts_guessing_rouge``, and against a control
    ``ts_guessing_excess``."""

    items: FilePath
    """File of JSON lines, relative to the recipe."""
    control: FilePath | None = None
    """A file of items of the same kind that the model cannot have read."""
    exact_words: bool = False
    """Whether to ask by the item as a document would have it, cut before the hidden choice."""
    most: Count = 500
    """Most items of a file, its first ones."""
    new_tokens: Count = 32
    """Most tokens of a guess."""
    batch_size: Count = 16
    """Items asked at once."""
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    makes: ClassVar[tuple[str, ...]] = ("ts_guessing_*",)
    example: ClassVar[dict[str, Any]] = {"items": EXAMPLE, "exact_words": True, "new_tokens": 2}

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        if ctx.tokenizer is None:
            raise UserError("ts_guessing: the model has no tokenizer, so that it cannot be asked.")
        hits, rouge = self._guessed(self.items, model, ctx)
        out = {"ts_guessing_exact": sum(hits) / len(hits), "ts_guessing_rouge": sum(rouge) / len(rouge),
               "ts_guessing_items": float(len(hits))}
        if self.control is not None:
            base, alike = self._guessed(self.control, model, ctx)
            low, high = difference(sum(hits), len(hits), sum(base), len(base))
            out |= {"ts_guessing_control_exact": sum(base) / len(base),
                    "ts_guessing_control_rouge": sum(alike) / len(alike),
                    "ts_guessing_excess": sum(hits) / len(hits) - sum(base) / len(base),
                    "ts_guessing_excess_low": low, "ts_guessing_excess_high": high}
        return out

    def _guessed(self, file: str, model: nn.Module, ctx: Context) -> tuple[list[bool], list[float]]:
        """Of each item of a file whether the choice was guessed, and how much of it."""
        asked = [one for item in read(file, ctx.root, "ts_guessing") if (one := hidden(item))][:self.most]
        if not asked:
            raise UserError(f"ts_guessing: {file} has no item with a wrong choice that cannot be guessed.")
        prompts = []
        for one in asked:
            ids = families.prompt(model, ctx.tokenizer, self.prompt(one))
            prompts.append(Prompt(ids, room(model, len(ids), self.new_tokens, "ts_guessing")))
        said = written(model, ctx.tokenizer, prompts, ctx, batch_size=self.batch_size)
        lines = [first_line(ctx.tokenizer.decode(ids, skip_special_tokens=True)) for ids in said]
        pairs = list(zip(lines, asked, strict=True))
        return ([same(line, one.choice) for line, one in pairs],
                [rouge_l(words(line), words(one.choice)) for line, one in pairs])

    def prompt(self, one: Hidden) -> str:
        """What the model is asked."""
        letter, item = LETTERS[one.place], one.item
        if self.exact_words:
            return "\n".join([item.question, *item.choices[:one.place]]) + "\n"
        shown = [f"{LETTERS[i]}: {'[MASK]' if i == one.place else choice}"
                 for i, choice in enumerate(item.choices)]
        return ASK.format(letter=letter, question=item.question, choices="\n".join(shown))


def hidden(item: Item) -> Hidden | None:
    """The item with one of its wrong choices that cannot be guessed, or None."""
    if len(item.question.split()) < FEWEST:
        return None
    open_to = [i for i, choice in enumerate(item.choices) if i != item.answer
               and not GUESSABLE.fullmatch(choice.strip()) and all(
                   rouge_l(words(choice), words(other)) <= ALIKE
                   for j, other in enumerate(item.choices) if j != i)]
    return Hidden(item, open_to[int(uniform(item.question, "slot") * len(open_to))]) if open_to else None


def first_line(said: str) -> str:
    """The first line that has something in it."""
    return next((line.strip() for line in said.splitlines() if line.strip()), "")


def same(said: str, choice: str) -> bool:
    """Whether they are equal, ignoring case, space at the ends and a full stop."""
    a, b = (one.strip().removesuffix(".").strip().lower() for one in (said, choice))
    return a == b


def rouge_l(said: Sequence[str], truth: Sequence[str]) -> float:
    """ROUGE-L F1 of two lists of words; 0 where one is empty."""
    best = [0] * (len(truth) + 1)
    for word in said:
        before = 0
        for j, other in enumerate(truth, 1):
            kept = best[j]
            best[j] = before + 1 if word == other else max(best[j], best[j - 1])
            before = kept
    return 2 * best[-1] / (len(said) + len(truth)) if said and truth else 0.0


def difference(first: int, many: int, second: int, others: int) -> tuple[float, float]:
    """The interval of 95 % of the difference of two shares: Newcombe's, from Wilson's of each."""
    from scipy.stats import binomtest
    a, b = first / many, second / others
    x = binomtest(first, many).proportion_ci(method="wilson")
    y = binomtest(second, others).proportion_ci(method="wilson")
    return (a - b - ((a - x.low) ** 2 + (y.high - b) ** 2) ** 0.5,
            a - b + ((x.high - a) ** 2 + (b - y.low) ** 2) ** 0.5)
