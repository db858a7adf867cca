"""What a method edits is what is learned: the text of a conversation is a view of its messages, never apart
from them.

A plain document is learned from ``text``, a conversation from ``messages``, a pair from ``prompt``,
``chosen`` and ``rejected``; ``text`` of the last two is what they say, so that every filter can read it. A
method that edits documents calls ``edit``, which changes what is learned and keeps the view; the stage
refuses a table in which the two have come apart.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from trainwright.core.errors import UserError
from trainwright.corpus.columns import CHOSEN, ID, MESSAGES, PROMPT, REJECTED, TEXT

if TYPE_CHECKING:
    from daft import DataFrame

BETWEEN = "\n\n"
"""What stands between two messages in the text of a conversation."""
LEARNED = (MESSAGES, PROMPT, CHOSEN)
"""The columns that the text of a document is a view of, where they are not null."""


def said(messages: Sequence[Mapping[str, Any]]) -> str:
    """What is said in a conversation: the contents of its messages, a blank line between them."""
    return BETWEEN.join(m["content"] for m in messages if isinstance(m.get("content"), str) and m["content"])


def conversation(messages: str | None, prompt: str | None, chosen: str | None) -> str | None:
    """The conversation that a document is learned from, as JSON: its own, or that of a pair with the chosen
    answer; None where it has none."""
    if messages is not None or chosen is None:
        return messages
    turns = [json.loads(part or "[]") for part in (prompt, chosen)]
    if any(isinstance(part, str) for part in turns):
        return None
    return json.dumps(turns[0] + turns[1], ensure_ascii=False)


def view(messages: str | None, prompt: str | None, chosen: str | None) -> str | None:
    """The text of a document that is learned from messages or a pair; None where it is plain text."""
    talk = conversation(messages, prompt, chosen)
    if talk is not None:
        return said(json.loads(talk))
    return None if chosen is None else json.loads(prompt or '""') + json.loads(chosen)


def plain(table: DataFrame) -> DataFrame:
    """The documents that are learned from their text alone."""
    return table.where(table[MESSAGES].is_null() & table[CHOSEN].is_null())


def edit(table: DataFrame, change: Callable[[str], str]) -> DataFrame:
    """``table`` with ``change`` made to what is learned: the text of plain documents, the content of each
    message, the parts of each pair. Lazy; ``change`` is given one string at a time, none of them null."""
    import daft
    names = (TEXT, *LEARNED, REJECTED)

    row = daft.DataType.struct(dict.fromkeys(names, daft.DataType.string()))

    @daft.func.batch(return_dtype=row)  # type: ignore[untyped-decorator]
    def edited(*columns: Any) -> Any:
        rows = zip(*(column.to_arrow().to_pylist() for column in columns), strict=True)
        made = list(zip(*(_edited(row, change) for row in rows), strict=True)) or [()] * len(names)
        return pa.StructArray.from_arrays([pa.array(column, pa.large_string()) for column in made], names)

    made = table.with_column("edited", edited(*(table[name] for name in names)))
    return made.with_columns({name: made["edited"].get(name) for name in names}).select(*table.column_names)


def _edited(row: tuple[str | None, ...], change: Callable[[str], str]) -> tuple[str | None, ...]:
    """``text, messages, prompt, chosen, rejected`` of a document after the change."""
    text, *learned = row
    parts = [None if part is None else _changed(part, change) for part in learned]
    shown = view(*parts[:3])
    if shown is None and text is not None:
        shown = change(text)
    return shown, *parts


def _changed(turns: str, change: Callable[[str], str]) -> str:
    content = json.loads(turns)
    if isinstance(content, str):
        content = change(content)
    else:
        content = [m | {"content": change(m["content"])} if isinstance(m.get("content"), str) else m
                   for m in content]
    return json.dumps(content, ensure_ascii=False)


def apart(rows: pa.Table | pa.RecordBatch) -> list[str]:
    """The ids of documents, of a part of a table, whose text is not what their messages or their pair say."""
    if all(rows[name].null_count == len(rows) for name in (MESSAGES, CHOSEN)):
        return []
    columns = [rows[name].to_pylist() for name in (ID, TEXT, *LEARNED)]
    found = ((name, text, view(*learned)) for name, text, *learned in zip(*columns, strict=True))
    return [name for name, text, viewed in found if viewed is not None and viewed != (text or "")]


def check(rows: pa.Table, method: str) -> None:
    """Refuse documents, handed on by ``method``, of which text and what is learned have come apart."""
    if names := apart(rows):
        raise UserError(f"the method {method!r} hands on {len(names):,} documents whose text is not what "
                        f"their messages say, the first {names[0]!r}: conversations and pairs are learned "
                        "from those, so an edit of text would be lost; edit documents with "
                        "trainwright.corpus.editing.edit.")
