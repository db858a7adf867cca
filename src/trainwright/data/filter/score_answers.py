"""Scores documents by yes-or-no questions that a language model is asked about them.

The evaluator of "Towards a Unified Multi-Dimensional Evaluator for Text Generation" (UniEval, arXiv
2210.07197), whose naturalness, coherence and understandability are indicators of "Instruction Mining"
(arXiv 2307.06290). For each question there is a column with

    P(yes) / (P(yes) + P(no))

of the first token of the answer (see ``lm/grading.py``), the mean over the turns of a conversation; of a
plain document, which has no instruction, ``{response}`` is its text. ``from.model`` may be a model of
encoder and decoder (UniEval's is a T5; its own wordings go into ``questions``), or a causal one such as an
instruct model, which was not trained for these questions. A prompt that is too long loses the end of its
longest part.

Not where a model gives all documents nearly one score: look at the column first. An empty document has null.

Errors: no model, one without a tokenizer, or one whose tokenizer begins both answers alike; a question
without ``{response}``, or of the name of a column that every table has.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from trainwright.core.method import Curate
from trainwright.core.settings import Count
from trainwright.core.stage import Role
from trainwright.corpus.columns import SCHEMA
from trainwright.corpus.turns import Turn, turns

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context
    from trainwright.corpus.tokens import Document
    from trainwright.lm.grading import Grader

ABOUT = "\n\nRequest:\n{instruction}\n\nAnswer:\n{response}\n\nReply with yes or no:"
QUESTIONS = {
    "naturalness": "Does the answer below read like something that a person would say?" + ABOUT,
    "coherence": "Does the answer below follow from the request before it?" + ABOUT,
    "understandability": "Can the answer below be understood by whoever made the request?" + ABOUT}
ANSWERS = {"yes": 1.0, "no": 0.0}


class ScoreAnswers(Curate):
    """Adds a column with the probability of a yes for each of several questions."""

    questions: dict[str, str] = field(default_factory=lambda: dict(QUESTIONS))
    """What is asked by the name of its column; ``{instruction}`` and ``{response}`` stand for the turn."""
    length: Count = 1024
    """Longest prompt, in tokens; shorter if the model has fewer positions."""
    batch_tokens: Count = 8192
    """Tokens of a forward pass, roughly."""
    roles: ClassVar[dict[str, Role]] = {"model": Role(needed=True)}
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "prompts are read sorted by length; what a model made of them is not made "
        "again for each look"
    }
    example: ClassVar[dict[str, Any]] = {"questions": {"kind": "{response}"}, "length": 48,
                                         "batch_tokens": 512}

    def __post_init__(self) -> None:
        for name, question in self.questions.items():
            if name in SCHEMA:
                raise ValueError(f"questions: {name!r} is a column that every table has; take another name")
            if "{response}" not in question:
                raise ValueError(f"the question {name!r} lacks {{response}}")
        if not self.questions:
            raise ValueError("questions asks nothing")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.selecting import attach, settled
        from trainwright.lm.grading import Grader
        from trainwright.lm.scoring import read_blocks
        from trainwright.storage.store import key_of
        rows = settled(documents, ctx)
        grader = Grader.of(ctx.path("model"), ANSWERS, ctx, self.name, self.length, self.batch_tokens)
        reader = replace(grader.reader, key=key_of(grader.reader.key, self.questions))
        return attach(rows, read_blocks(rows, reader, "answers", partial(answered, grader, self.questions)))


def answered(grader: Grader, questions: dict[str, str], block: Sequence[Document]) -> dict[str, Any]:
    """For each question the mean over a document's turns; null where there is none."""
    said = [parts(one) for one in block]
    found: dict[str, Any] = {}
    for name, question in questions.items():
        prompts = [grader.ids(question, turn._asdict()) for one in said for turn in one]
        each = np.split(grader.grades(prompts), np.cumsum([len(one) for one in said])[:-1])
        found[name] = pa.array([float(one.mean()) if len(one) else None for one in each], pa.float64())
    return found


def parts(document: Document) -> list[Turn]:
    """The turns of a conversation, or a plain text as one answer to nothing."""
    if document.messages is not None:
        return turns(document.messages)
    return [Turn("", document.content)] if document.content.strip() else []
