"""What the documents of a corpus ask, as prompts that a model answers and a task grades.

    a pair                     its prompt
    a conversation             all that is said before its last answer
    a plain document           its text

What is a list of messages goes through the tokenizer's chat template, with the beginning of an answer.
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from trainwright import families
from trainwright.core.errors import UserError
from trainwright.corpus.columns import ID, MESSAGES, PROMPT, TEXT

COLUMNS = (ID, TEXT, MESSAGES, PROMPT)
"""What is read of a document."""


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
        text = next((str(m.get("content") or "") for m in reversed(turns) if m["role"] == "user"), "")
        ids = _rendered(turns, tokenizer) if text else []
    if not ids:
        raise UserError(f"{who}: the document {row[ID]!r} asks nothing: name the domains of documents that "
                        "do.")
    return Asked(text, ids)


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
