"""What the documents of a corpus ask, as prompts that a model answers and a task grades.

    a pair                     its prompt
    a conversation             all that is said before its last answer
    a plain document           its text

What is a list of messages goes through the tokenizer's chat template, with the beginning of an answer.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from trainwright import families
from trainwright.core.errors import UserError
from trainwright.corpus.columns import CHOSEN, ID, MESSAGES, PROMPT, TEXT

COLUMNS = (ID, TEXT, MESSAGES, PROMPT)
"""What is read of a document."""
ANSWERED = (*COLUMNS, CHOSEN)
"""The same with its answer."""


class Asked(NamedTuple):
    """A prompt."""

    text: str
    """What a task is told: the text, or the user's last message."""
    ids: list[int]
    """The tokens that a model reads."""


def asked(row: Mapping[str, Any], model: nn.Module, tokenizer: Any, who: str) -> Asked:
    """The prompt of a document, given its ``COLUMNS``.

    Raises:
        UserError: it asks nothing, or is a conversation and the tokenizer has no chat template; ``who``
            begins the sentence.
    """
    turns = _turns(row)
    if isinstance(turns, str):
        text, ids = turns, families.prompt(model, tokenizer, turns) if turns else []
    else:
        if tokenizer.chat_template is None:
            raise UserError(f"{who}: the document {row[ID]!r} is a conversation, and the tokenizer has no "
                            "chat template: give the corpus a chat_template.")
        text = question_of(row)
        ids = _rendered(turns, tokenizer) if text else []
    if not ids:
        raise UserError(f"{who}: the document {row[ID]!r} asks nothing: name the domains of documents that "
                        "do.")
    return Asked(text, ids)


def question_of(row: Mapping[str, Any]) -> str:
    """What a task is told that the document asks, given its ``COLUMNS``; empty where it asks nothing."""
    turns = _turns(row)
    if isinstance(turns, str):
        return turns
    return next((str(m.get("content") or "") for m in reversed(turns) if m["role"] == "user"), "")


def answer_of(row: Mapping[str, Any]) -> str:
    """The answer that stands in a document, given its ``ANSWERED``: the chosen one of a pair, the last
    message of a conversation that the assistant ends; empty where there is none."""
    said = json.loads((row[CHOSEN] or "null") if row[PROMPT] else (row[MESSAGES] or "null"))
    if isinstance(said, list):
        said = said[-1].get("content") if said and said[-1]["role"] == "assistant" else ""
    return str(said or "")


def reworded(row: Mapping[str, Any], say: Callable[[str], str]) -> dict[str, Any]:
    """The document with another prompt, given what a task would be told of its own: the text, or the user's
    last message."""
    turns = _turns(row)
    if isinstance(turns, str):
        field = PROMPT if row[PROMPT] else TEXT
        return dict(row) | {field: json.dumps(say(turns)) if field == PROMPT else say(turns)}
    last = max((i for i, m in enumerate(turns) if m["role"] == "user"), default=-1)
    made = [m | {"content": say(str(m.get("content") or ""))} if i == last else m
            for i, m in enumerate(turns)]
    return dict(row) | {PROMPT if row[PROMPT] else MESSAGES: json.dumps(made)}


def _rendered(turns: list[dict[str, Any]], tokenizer: Any) -> list[int]:
    said = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(said, add_special_tokens=False)["input_ids"])


def _turns(row: Mapping[str, Any]) -> str | list[dict[str, Any]]:
    if row[PROMPT]:
        return json.loads(row[PROMPT])  # type: ignore[no-any-return]
    if not row[MESSAGES]:
        return str(row[TEXT] or "")
    turns: list[dict[str, Any]] = json.loads(row[MESSAGES])
    return turns[:-1] if turns and turns[-1]["role"] == "assistant" else turns
