"""What is asked and answered in a conversation, turn by turn."""
from __future__ import annotations

import json
from typing import NamedTuple

from trainwright.corpus.editing import BETWEEN


class Turn(NamedTuple):
    """An answer of the assistant, and what the user said since the one before it."""

    instruction: str
    response: str


def turns(messages: str | None) -> list[Turn]:
    """The turns of a conversation given as JSON; none where there is no conversation.

    System prompts and what tools say belong to no turn, and neither does an answer that nobody asked for or
    that has no text.
    """
    found: list[Turn] = []
    asked: list[str] = []
    for message in json.loads(messages) if messages else ():
        content = message.get("content")
        if not isinstance(content, str) or not content.strip():
            continue
        if message["role"] == "user":
            asked.append(content)
        elif message["role"] == "assistant" and asked:
            found.append(Turn(BETWEEN.join(asked), content))
            asked = []
    return found
