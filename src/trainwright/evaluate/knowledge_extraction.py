"""How many questions a model answers exactly: knowledge that it can use, and not only repeat.

The evaluation of "Physics of Language Models: Part 3.1, Knowledge Storage and Extraction" (arXiv
2309.14316). The model continues each question greedily; what it writes up to the end of the line, without
surrounding whitespace and a final full stop, must equal the answer exactly:

    exact_match/ATTRIBUTE = questions answered exactly / questions
    answer_loss/ATTRIBUTE = mean nats of a whole answer after its question
    exact_match/mean, answer_loss/mean = the means over attributes

``answer_loss`` is an addition: it distinguishes models that answer nothing exactly yet, whatever their
tokenizers.

Questions are the documents of a domain whose metadata have ``question`` and ``answer`` (and
``attribute``), as ``physics_of_lms_3_1`` makes them, or conversations: there the last turn of the
assistant is the answer, and the chat template makes the prompt from the turns before it. With n questions
the standard error of a share p is sqrt(p (1 - p) / n).
Do not use it for answers that can be worded in several ways.

Errors: no tokenizer; a domain that the corpus does not have, or without questions; a question that leaves
no room in the model's positions; conversations without a chat template.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import nn

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError, suggest
from trainwright.core.method import UNTRAINED, Evaluator
from trainwright.families import evaluating, is_pretrained
from trainwright.lm.losses import padded, token_losses


class KnowledgeExtraction(Evaluator):
    """Measures ``exact_match`` and ``answer_loss`` of each attribute, and their means."""

    domain: str = "qa_test"
    """Domain of the corpus that holds the questions."""
    split: Literal["all", "train", "tune", "test"] = "all"
    """Which of its documents to ask."""
    most: int = 200
    """Most questions per attribute, chosen by their ids."""
    new_tokens: int = 32
    """Most tokens of an answer."""
    batch_size: int = 32
    """Questions answered at once."""
    makes: ClassVar[tuple[str, ...]] = ("exact_match/*", "answer_loss/*")
    example: ClassVar[dict[str, Any]] = {"domain": "chat", "most": 4, "new_tokens": 2}

    def __post_init__(self) -> None:
        for name in ("most", "new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        from trainwright.lm.generation import Prompt, written

        if ctx.tokenizer is None or not is_pretrained(model):
            raise UserError("knowledge_extraction needs a causal model of transformers and its tokenizer.")
        asked = sorted(self._asked(model, ctx), key=lambda one: len(one.prompt))
        told: dict[str, list[float]] = {}
        for at in range(0, len(asked), self.batch_size):
            part = asked[at : at + self.batch_size]
            prompts = [Prompt(one.prompt, self.new_tokens) for one in part]
            said = written(model, ctx.tokenizer, prompts, ctx, batch_size=self.batch_size)
            for one, ids, nats in zip(part, said, answer_losses(model, part, ctx), strict=True):
                text = ctx.tokenizer.decode(ids, skip_special_tokens=True)
                told.setdefault(f"exact_match/{one.attribute}", []).append(exact(text, one.answer))
                told.setdefault(f"answer_loss/{one.attribute}", []).append(nats)
        means = {name: sum(found) / len(found) for name, found in sorted(told.items())}
        for what in ("exact_match", "answer_loss"):
            over = [value for name, value in means.items() if name.startswith(f"{what}/")]
            means[f"{what}/mean"] = sum(over) / len(over)
        return means

    def _asked(self, model: nn.Module, ctx: Context) -> list[Asked]:
        from trainwright.corpus.tokens import uniform
        from trainwright.lm.losses import most_positions

        rows = sorted(self._rows(ctx), key=lambda row: uniform(row["id"], "knowledge_extraction"))
        positions, found, many = most_positions(model), list[Asked](), dict[str, int]()
        for row in rows:
            one = self._read(row, model, ctx.tokenizer)
            if one is None or many.setdefault(one.attribute, 0) >= self.most:
                continue
            many[one.attribute] += 1
            if positions is not None and len(one.prompt) + max(self.new_tokens, len(one.written)) > positions:
                raise UserError(
                    f"knowledge_extraction: the question {row['id']!r} has {len(one.prompt)} tokens, which "
                    f"with its answer or new_tokens = {self.new_tokens} are more than the {positions} "
                    "positions of the model."
                )
            found.append(one)
        if not found:
            raise UserError(
                f"knowledge_extraction: no document of the domain {self.domain!r} ({self.split}) is a "
                "question; one has question and answer in its metadata, or messages."
            )
        return found

    def _rows(self, ctx: Context) -> list[dict[str, str]]:
        import pyarrow.parquet as pq

        from trainwright.corpus.tokens import open_corpus

        folder = ctx.path("data")
        corpus = open_corpus(folder)
        if self.domain not in corpus.domains:
            raise UserError(
                "knowledge_extraction: the corpus has no domain "
                f"{self.domain!r}{suggest(self.domain, corpus.domains)}."
            )
        ids = None if self.split == "all" else set(map(str, corpus.select(self.split, (self.domain,)).id))
        columns = ["id", "metadata", "messages"]
        tables = [
            pq.read_table(f, columns=columns, filters=[("domain", "==", self.domain)])
            for f in sorted((folder / "documents").glob("*.parquet"))
        ]
        return [row for table in tables for row in table.to_pylist() if ids is None or row["id"] in ids]

    def _read(self, row: dict[str, str], model: nn.Module, tokenizer: Any) -> Asked | None:
        """The question that a document asks, or None."""
        if row["messages"] is not None:
            messages = json.loads(row["messages"])
            if len(messages) < 2 or messages[-1]["role"] != "assistant":
                return None
            if tokenizer.chat_template is None:
                raise UserError(
                    "knowledge_extraction: the questions are conversations, but the tokenizer has no chat "
                    "template."
                )
            prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False)
            ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            return self._with(ids, messages[-1]["content"], "{}", self.domain, tokenizer)
        known = json.loads(row["metadata"] or "{}")
        if not isinstance(known.get("question"), str) or not isinstance(known.get("answer"), str):
            return None
        ids = families.prompt(model, tokenizer, known["question"])
        return self._with(ids, known["answer"], " {}.", str(known.get("attribute") or self.domain), tokenizer)

    def _with(self, ids: list[int], answer: str, form: str, attribute: str, tokenizer: Any) -> Asked | None:
        written = tokenizer(form.format(answer), add_special_tokens=False)["input_ids"]
        return Asked(ids, written, answer, attribute) if ids and written else None


class Asked(NamedTuple):
    """A question and its answer as tokens, the answer's text, and its attribute."""

    prompt: list[int]
    written: list[int]
    answer: str
    attribute: str


def exact(said: str, answer: str) -> bool:
    """Whether the first line equals the answer, ignoring surrounding whitespace and a final full stop."""
    first = (said.strip().splitlines() or [""])[0]
    return first.strip().removesuffix(".") == answer.strip().removesuffix(".")


def answer_losses(model: nn.Module, asked: Sequence[Asked], ctx: Context) -> list[float]:
    """Nats of each answer after its question, summed over its tokens."""
    rows = [
        ((one.prompt + one.written)[:-1], [UNTRAINED] * (len(one.prompt) - 1) + one.written) for one in asked
    ]
    with torch.no_grad(), evaluating(model):
        losses = token_losses(model, padded(rows, ctx), ctx)
    return [float(one) for one in losses.double().sum(1)]
