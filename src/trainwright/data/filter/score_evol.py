"""Scores conversations by how complex a model finds their instructions, and how good their answers.

"What Makes Good Data for Alignment? A Comprehensive Study of Automatic Data Selection in Instruction
Tuning" (DEITA, arXiv 2312.15685): the scorers Evol-Complexity and Evol-Quality. A scorer is a language model
that answers with a grade from 1 to 6; of the instruction of each turn t (complexity c_t), and of the
instruction with its answer (quality q_t), with z_k the logit of the grade k as the next token,

    c_t, q_t = sum_{k = 1..6} k softmax(z_1 … z_6)_k
    evol     = sum_t c_t q_t

The columns are ``complexity`` and ``quality``, the means over the turns, and ``evol``, the sum of the
products, which the paper selects by and which is not the product of the means: ``deita`` with ``scores =
["evol"]``, ``best`` and every other selection take any of them. Documents that are no conversation have
null.

The paper's scorers were trained on what an LLM said of evolved variants *ranked together*: ``evol_grades``
writes such examples, in the wordings in which this method asks, and a training stage with ``supervised``
makes a scorer of them. An instruct model that is asked without that training gives absolute grades, the
baseline that the paper argues against. Scorers are ``from.model``, or those of ``from.models`` that
``complexity_by`` and ``quality_by`` name. For the authors' released scorers, say their wordings in
``prompts``. Where they give 3.0 to what could not be graded, a prompt that is too long is graded here
without the end of its longest part.

Not for plain documents, nor for grades that two scorers of different training give.

Errors: no model, one without a tokenizer, or one whose tokenizer begins two grades alike; a prompt that
lacks a part.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from trainwright.core.errors import suggest
from trainwright.core.method import Curate
from trainwright.core.settings import Count
from trainwright.core.stage import MODEL, MODELS, Role
from trainwright.corpus.turns import Turn, turns

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context
    from trainwright.corpus.tokens import Document
    from trainwright.lm.grading import Grader

GRADES = {str(k): float(k) for k in range(1, 7)}
PROMPTS = {
    "complexity": "How complex is the task that the request below sets? Answer with a grade from 1 (trivial) "
                  "to 6 (very complex) and nothing else.\n\nRequest:\n{instruction}\n\nGrade:",
    "quality": "How good is the answer below to the request before it? Answer with a grade from 1 (bad) to 6 "
               "(excellent) and nothing else.\n\nRequest:\n{instruction}\n\nAnswer:\n{response}\n\nGrade:"}
"""Wordings of the two questions."""


class ScoreEvol(Curate):
    """Adds the columns ``complexity``, ``quality`` and ``evol``."""

    complexity_by: str = ""
    """The model of ``from.models`` that grades instructions; default: ``from.model``."""
    quality_by: str = ""
    """The model of ``from.models`` that grades answers; default: ``from.model``."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Wordings of your own: ``complexity`` with ``{instruction}``, ``quality`` with ``{response}`` too."""
    length: Count = 2048
    """Longest prompt, in tokens; shorter if the model has fewer positions."""
    batch_tokens: Count = 8192
    """Tokens of a forward pass, roughly."""
    roles: ClassVar[dict[str, Role]] = {"model": MODEL, "models": MODELS}
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "prompts are read sorted by length; what a model made of them is not made "
        "again for each look"
    }
    example: ClassVar[dict[str, Any]] = {
        "length": 48, "batch_tokens": 512,
        "prompts": {"complexity": "{instruction}", "quality": "{instruction} {response}"}}

    def __post_init__(self) -> None:
        check_prompts(self.prompts)

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.selecting import attach, settled
        rows = settled(documents, ctx)
        complexity, quality = (self._graded(rows, what, by, ctx) for what, by in (
            ("complexity", self.complexity_by), ("quality", self.quality_by)))
        return attach(rows, combined(complexity, quality))

    def _graded(self, rows: DataFrame, what: str, by: str, ctx: Context) -> pa.Table:
        """``id`` and ``grades``, those of a document's turns."""
        from dataclasses import replace

        from trainwright.lm.grading import Grader
        from trainwright.lm.scoring import read_blocks
        from trainwright.storage.store import key_of
        folder = ctx.path("models", by) if by else ctx.path("model")
        grader = Grader.of(folder, GRADES, ctx, self.name, self.length, self.batch_tokens)
        template = (PROMPTS | self.prompts)[what]
        reader = replace(grader.reader, key=key_of(grader.reader.key, template))
        return read_blocks(rows, reader, f"evol-{what}", partial(graded, grader, template))


def graded(grader: Grader, template: str, block: Sequence[Document]) -> dict[str, Any]:
    """The grades of the turns of each document."""
    said = [turns(one.messages) for one in block]
    prompts = [grader.ids(template, asked(template, turn)) for one in said for turn in one]
    found = np.split(grader.grades(prompts), np.cumsum([len(one) for one in said])[:-1])
    return {"grades": pa.array([one.tolist() for one in found], pa.list_(pa.float64()))}


def asked(template: str, turn: Turn) -> dict[str, str]:
    """What a wording asks about a turn."""
    return {name: text for name, text in turn._asdict().items() if f"{{{name}}}" in template}


def combined(complexity: pa.Table, quality: pa.Table) -> pa.Table:
    """``complexity``, ``quality`` (means over turns) and ``evol`` (the sum of their products) by ``id``; null
    where a document has no turn."""
    told = dict(zip(quality["id"].to_pylist(), quality["grades"].to_pylist(), strict=True))
    rows = []
    for name, grades in zip(complexity["id"].to_pylist(), complexity["grades"].to_pylist(), strict=True):
        c, q = np.array(grades), np.array(told[name])
        rows.append([float(c.mean()), float(q.mean()), float(c @ q)] if len(c) else [None] * 3)
    columns = zip(*rows, strict=True)
    return pa.table({"id": complexity["id"]} | {
        name: pa.array(list(values), pa.float64())
        for name, values in zip(("complexity", "quality", "evol"), columns, strict=True)})


def check_prompts(prompts: Mapping[str, str]) -> None:
    """For ``__post_init__``.

    Raises:
        ValueError: a wording of no question, or one without what it is about.
    """
    for name, prompt in prompts.items():
        if name not in PROMPTS:
            raise ValueError(f"there is no prompt {name!r}{suggest(name, PROMPTS)}")
        part = "{instruction}" if name == "complexity" else "{response}"
        if part not in prompt:
            raise ValueError(f"the prompt {name!r} lacks {part}")
