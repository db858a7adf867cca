"""Whether an adapted model beats its own base on questions: win, tie or loss, with prompts chosen for each.

"Medical Adaptation of Large Language and Vision-Language Models: Are We Making Progress?" (arXiv 2411.04118).
Both models answer the same multiple-choice items. For *each of them* the prompt is chosen by its accuracy on
validation items: the best of ``formats`` ways of writing a question, times ``examples`` sets of ``shots``
solved questions (the first one where several are best). With that choice each answers the test items once:
the answer is the choice whose letter is the likeliest. Then

    dapt_gain = mean_i (right_i of the model - right_i of its base)

with the ends of its interval of 95 %, percentiles of a paired bootstrap: the same items are drawn for both.
It is a ``dapt_win`` where the interval lies above 0, a ``dapt_loss`` where below, else a ``dapt_tie`` (each 0
or 1, so that their means over tasks and models are the paper's rates). Of models that are equal, 2.5 % of the
cases are wins by chance. A tie of few items is no evidence of equality: look at the interval.

``dapt_shared_gain`` and its verdict are the flaw that the paper exposes, the model's own prompt used for the
base too. The paper's vision-language models are left out, and so is its grid of prompts, whose wording is not
published in words that could be taken.

Not for models that a chat template was trained into: they are asked without it.

Errors: a file that cannot be read or whose items have several numbers of choices; fewer validation items than
``shots`` + 1; a prompt that leaves no room in the model's positions.
"""
from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import nn

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Evaluator
from trainwright.core.settings import Count, FilePath
from trainwright.core.stage import MODEL, Role
from trainwright.evaluate.audit._items import EXAMPLE, LETTERS, Item, read
from trainwright.lm.generation import room
from trainwright.lm.losses import evaluating, padded, token_losses

QUESTIONS = ("{}", "Question: {}", "Q: {}", "### Question\n{}")
CHOICES = ("{}. {}", "({}) {}", "{}: {}")
ANSWERS = ("Answer:", "The answer is", "A:")
DRAWS = 2000
VERDICTS = ("win", "tie", "loss")


class Format(NamedTuple):
    """A way to write an item."""

    question: str
    choice: str
    answer: str

    def written(self, item: Item) -> str:
        lines = [self.choice.format(LETTERS[i], one) for i, one in enumerate(item.choices)]
        return "\n".join([self.question.format(item.question), *lines, self.answer])

    def solved(self, item: Item) -> str:
        return f"{self.written(item)} {LETTERS[item.answer]}\n\n"


class Way(NamedTuple):
    """A format, and solved items in front of each question."""

    format: Format
    shown: tuple[Item, ...]

    def prompt(self, item: Item) -> str:
        return "".join(map(self.format.solved, self.shown)) + self.format.written(item)


class MedicalDaptEval(Evaluator):
    """Measures ``dapt_gain`` of a model over its base, and whether it is a win, a tie or a loss."""

    items: FilePath
    """File of the test items: JSON lines with question, choices and answer."""
    validation: FilePath
    """File of the items by which prompts are chosen; it shares none with the test."""
    shots: int = 3
    """Solved questions in front of each."""
    formats: Count = 4
    """Ways of writing a question that are tried, drawn from 36."""
    examples: Count = 3
    """Sets of solved questions that are tried; one where shots is 0."""
    most: Count = 1000
    """Most items of each file, its first ones."""
    batch_size: Count = 16
    """Questions of a forward pass."""
    roles: ClassVar[dict[str, Role]] = {"base": MODEL._replace(needed=True)}
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    makes: ClassVar[tuple[str, ...]] = ("dapt_*",)
    example: ClassVar[dict[str, Any]] = {"items": EXAMPLE, "validation": EXAMPLE, "shots": 0, "formats": 1}

    def __post_init__(self) -> None:
        if self.shots < 0:
            raise ValueError(f"shots must be 0 or more, not {self.shots}")

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        if ctx.tokenizer is None:
            raise UserError("medical_dapt_eval: the model has no tokenizer, so that it cannot be asked.")
        trial, test = (read(file, ctx.root, self.name)[:self.most] for file in (self.validation, self.items))
        ways = self.ways(trial, ctx)
        mine = self.chosen(model, ways, trial, ctx)
        right = self.right(model, mine, test, ctx)
        out = {"dapt_accuracy": float(right.mean())}
        if not ctx.inputs.get("base"):
            return out
        base = families.load(ctx.path("base"), self.name).to(ctx.device).eval()
        own = self.chosen(base, ways, trial, ctx)
        other = self.right(base, own, test, ctx)
        shared = other if own == mine else self.right(base, mine, test, ctx)
        return out | {"dapt_base_accuracy": float(other.mean())} | verdict(
            "dapt", right, other, ctx) | verdict("dapt_shared", right, shared, ctx)

    def ways(self, trial: Sequence[Item], ctx: Context) -> list[Way]:
        """The prompts that are tried, the same for every model."""
        if len(trial) <= self.shots:
            raise UserError(f"medical_dapt_eval: {self.validation} has {len(trial)} items, and {self.shots} "
                            "of them are shown: it takes more.")
        rng = ctx.rng("medical_dapt_eval", at=0)
        every = [Format(*one) for one in itertools.product(QUESTIONS, CHOICES, ANSWERS)]
        formats = [every[i] for i in torch.randperm(len(every), generator=rng)[:self.formats].tolist()]
        sets = [tuple(trial[i] for i in torch.randperm(len(trial), generator=rng)[:self.shots].tolist())
                for _ in range(self.examples if self.shots else 1)]
        return [Way(form, shown) for form in formats for shown in sets]

    def chosen(self, model: nn.Module, ways: Sequence[Way], trial: Sequence[Item], ctx: Context) -> Way:
        """The prompt with which a model answers most validation items; those that it shows are not asked."""
        shares = []
        for way in ways:
            asked = [item for item in trial if item not in way.shown]
            shares.append(float(self.right(model, way, asked, ctx).mean()))
        return ways[int(np.argmax(shares))]

    def right(self, model: nn.Module, way: Way, items: Sequence[Item], ctx: Context) -> np.ndarray:
        """Whether each item is answered rightly, [items]."""
        letters = [ctx.tokenizer(f" {one}", add_special_tokens=False)["input_ids"] for one in LETTERS]
        rows, owners = [], []
        for i, item in enumerate(items):
            ids = families.prompt(model, ctx.tokenizer, way.prompt(item))
            room(model, len(ids), max(map(len, letters)), "medical_dapt_eval")
            for letter in letters[:len(item.choices)]:
                rows.append(((ids + letter)[:-1], [UNTRAINED] * (len(ids) - 1) + letter))
                owners.append(i)
        nats: list[float] = []
        for at in range(0, len(rows), self.batch_size):
            with torch.no_grad(), evaluating(model):
                losses = token_losses(model, padded(rows[at:at + self.batch_size], ctx), ctx)
            nats += losses.double().sum(1).tolist()
        found = np.array(nats)
        said = [int(found[np.array(owners) == i].argmin()) for i in range(len(items))]
        return np.array([a == item.answer for a, item in zip(said, items, strict=True)], dtype=float)


def verdict(name: str, right: np.ndarray, other: np.ndarray, ctx: Context) -> dict[str, float]:
    """``NAME_gain`` with its interval, and one of ``NAME_win``, ``NAME_tie`` and ``NAME_loss`` is 1."""
    apart = right - other
    draws = torch.randint(len(apart), (DRAWS, len(apart)), generator=ctx.rng(f"paired/{name}", at=0)).numpy()
    low, high = (float(x) for x in np.quantile(apart[draws].mean(1), [0.025, 0.975]))
    word = "win" if low > 0 else "loss" if high < 0 else "tie"
    return {f"{name}_gain": float(apart.mean()), f"{name}_gain_low": low, f"{name}_gain_high": high,
            **{f"{name}_{one}": float(one == word) for one in VERDICTS}}
