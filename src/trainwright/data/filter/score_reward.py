"""Scores conversations by a reward model: how good people, or what learned from them, find the answers.

One of the indicators of "Instruction Mining: High-Quality Instruction Data Selection for Large Language
Models" (arXiv 2307.06290). ``from.model`` is a checkpoint of transformers for classifying sequences with one
output (``…ForSequenceClassification``, ``num_labels = 1``), as reward models are published. It reads each
turn with what came before it, through its tokenizer's chat template, or, where it has none, the instruction
and the answer as a pair of texts, as the paper's model does:

    reward(document) = mean over its turns of the model's output

A language model that has no such head is asked whether the answer is good, and its probability of a yes
(see ``score_answers``) is the reward. A turn longer than ``length`` tokens loses its beginning (of a pair,
the end of the longer text). Plain documents have null.

Not to compare rewards of several models: their zero and their scale are their own.

Errors: no model, one without a tokenizer, a head with several outputs.
"""
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import torch

from trainwright.core.errors import UserError
from trainwright.core.files import read_json
from trainwright.core.method import Curate
from trainwright.core.settings import Count
from trainwright.core.stage import Role
from trainwright.corpus.columns import SCHEMA
from trainwright.corpus.turns import Turn, turns
from trainwright.data.filter.score_answers import ABOUT, ScoreAnswers
from trainwright.families.base import Family

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context
    from trainwright.corpus.tokens import Document

HEAD = "ForSequenceClassification"
QUESTION = "Is the answer below a good one?" + ABOUT


class ScoreReward(Curate):
    """Adds a column with the mean reward of a conversation's turns."""

    column: str = "reward"
    """Name of the column."""
    question: str = QUESTION
    """What a language model without a head is asked."""
    length: Count = 1024
    """Most tokens of a turn and what came before it."""
    batch_tokens: Count = 8192
    """Tokens of a forward pass, roughly."""
    roles: ClassVar[dict[str, Role]] = {"model": Role(needed=True)}
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "turns are read sorted by length; what a model made of them is not made "
        "again for each look"
    }
    example: ClassVar[dict[str, Any]] = {"question": "{response}", "length": 48, "batch_tokens": 512}

    def __post_init__(self) -> None:
        if "{response}" not in self.question:
            raise ValueError("question lacks {response}, for which the answer stands")
        if self.column in SCHEMA:
            raise ValueError(f"column: {self.column!r} is one that every table has; take another name")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.selecting import attach, settled
        from trainwright.corpus.streaming import looked_up
        rows = settled(documents, ctx)
        if (folder := reward_folder(ctx.path("model"))) is not None:
            return attach(rows, self._rewards(rows, folder, ctx))
        asking = ScoreAnswers(questions={self.column: self.question}, length=self.length,
                              batch_tokens=self.batch_tokens)
        made = asking.apply(rows.where(rows["messages"].not_null()), ctx)
        told = made.select("id", self.column).to_arrow()
        return rows.with_columns(looked_up(rows, told))

    def _rewards(self, rows: DataFrame, folder: Path, ctx: Context) -> pa.Table:
        from trainwright.lm.scoring import read_blocks
        model = RewardModel.of(folder, ctx, self.name, self.length, self.batch_tokens)
        found = read_blocks(rows, model, "rewards", partial(rewards, model))
        return found.rename_columns(["id", self.column])


class _Classifier(Family):
    """transformers' models with a head for sequences, loaded as all models are."""

    auto: ClassVar[str] = "AutoModelForSequenceClassification"


@dataclass(frozen=True)
class RewardModel:
    """A reward model with its tokenizer."""

    model: Any
    tokenizer: Any
    length: int
    batch_tokens: int
    ctx: Context
    key: str

    @classmethod
    def of(cls, folder: Path, ctx: Context, method: str, length: int, batch_tokens: int) -> RewardModel:
        """The one in a folder.

        Raises:
            UserError: it has no tokenizer, or several outputs.
        """
        from trainwright import families
        from trainwright.storage.store import key_of, stamp
        tokenizer = families.load_tokenizer(folder, method)
        if tokenizer is None:
            raise UserError(f"{method}: the model in {folder} has no tokenizer, so that it cannot read "
                            "conversations.")
        model: Any = _Classifier().load(str(folder), method, None)
        if model.config.num_labels != 1:
            raise UserError(f"{method}: the model in {folder} has {model.config.num_labels} outputs; a "
                            "reward model has one (num_labels = 1).")
        return cls(model.to(ctx.device).eval(), tokenizer, length, batch_tokens, ctx,
                   key_of(stamp(folder), length))

    def encode(self, messages: Sequence[dict[str, Any]], turn: Turn) -> dict[str, list[int]]:
        """A turn with what came before it, as the model reads it."""
        if self.tokenizer.chat_template is None:
            return dict(self.tokenizer(turn.instruction, turn.response, truncation=True,
                                       max_length=self.length))
        text = self.tokenizer.apply_chat_template(list(messages), tokenize=False)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"][-self.length:]
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}

    def outputs(self, inputs: Sequence[dict[str, list[int]]]) -> np.ndarray:
        """The reward of each; only turns of one length share a batch, so that nothing is padded."""
        out = np.zeros(len(inputs))
        order = sorted(range(len(inputs)), key=lambda i: len(inputs[i]["input_ids"]))
        alone = self.model.config.get_text_config().pad_token_id is None
        while order:
            length = len(inputs[order[0]]["input_ids"])
            same = [i for i in order if len(inputs[i]["input_ids"]) == length]
            part = same[:1 if alone else max(1, self.batch_tokens // max(1, length))]
            order = [i for i in order if i not in set(part)]
            batch = {name: torch.tensor([inputs[i][name] for i in part], device=self.ctx.device)
                     for name in inputs[part[0]]}
            with torch.no_grad():
                out[part] = self.model(**batch).logits[:, 0].double().cpu().numpy()
        return out


def reward_folder(folder: Path) -> Path | None:
    """The folder, if it is a checkpoint with a head for sequences."""
    file = folder / "config.json"
    told = read_json(file) if file.is_file() else None
    names = told.get("architectures") if isinstance(told, dict) else None
    return folder if isinstance(names, list) and any(str(name).endswith(HEAD) for name in names) else None


def rewards(model: RewardModel, block: Sequence[Document]) -> dict[str, Any]:
    """The mean over the turns of each document."""
    inputs: list[list[dict[str, list[int]]]] = []
    for one in block:
        messages = json.loads(one.messages) if one.messages else []
        begun = [turns(json.dumps(messages[:end])) for end in range(len(messages) + 1)]
        inputs.append([model.encode(messages[:end], begun[end][-1]) for end in range(1, len(begun))
                       if len(begun[end]) > len(begun[end - 1])])
    found = model.outputs([one for many in inputs for one in many])
    each = np.split(found, np.cumsum([len(many) for many in inputs])[:-1])
    return {"reward": pa.array([float(one.mean()) if len(one) else None for one in each], pa.float64())}
