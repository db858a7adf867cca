"""The columns of documents: which every table has, of which kind each is, and how a value of a source becomes
one of them.

A new kind of content (a video, a molecule) is one entry in ``KINDS`` and its column one in ``SCHEMA``; what a
model reads of it is made in ``inputs.py``, and nowhere else. Tables hold strings and numbers only: the bytes
of an image or a sound lie beside them, under a hash of their content (``media.py``), and the column has the
reference.
"""
from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

Keep = Callable[[bytes, str], str]
"""Keeps bytes of media under a hash of them, given what they are; returns the reference that a column
holds."""


@dataclass(frozen=True)
class Kind:
    """What a column may hold. ``store`` makes the stored value of one that a source gave, or raises a
    ValueError that ends "…, not VALUE"; ``root`` is the folder that relative paths start from."""

    name: str
    arrow: pa.DataType
    store: Callable[[Any, Path, Keep | None], Any]


def _text(value: Any, root: Path, keep: Keep | None) -> str:
    if not isinstance(value, str):
        raise ValueError(f"text is a string, not {_short(value)}")
    return value


def _messages(value: Any, root: Path, keep: Keep | None) -> str:
    turns = isinstance(value, Sequence) and not isinstance(value, str)
    if not turns or not all(isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in value):
        raise ValueError(f"messages are a list of {{role, content}}, not {_short(value)}")
    plain = [{k: v for k, v in m.items() if v is not None} for m in value]
    return json.dumps(plain, ensure_ascii=False)


def _turns(value: Any, root: Path, keep: Keep | None) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return _messages(value, root, keep)


def _label(value: Any, root: Path, keep: Keep | None) -> str:
    if not isinstance(value, str | int) or value == "":
        raise ValueError(f"a label is a whole number or the name of a class, not {_short(value)}")
    return value if isinstance(value, str) else str(int(value))


def _number(value: Any, root: Path, keep: Keep | None) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ValueError(f"a number is a number, not {_short(value)}")
    return float(value)


def _medium(what: str) -> Callable[[Any, Path, Keep | None], str]:
    def store(value: Any, root: Path, keep: Keep | None) -> str:
        if isinstance(value, Mapping):  # as data sets on the Hub hold it: the bytes, or else a path
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str) and value:
            file = root / value
            if not Path(os.path.abspath(file)).is_relative_to(os.path.abspath(root)):
                raise ValueError(f"an {what} lies in the folder of its table or below it, not at {value}")
            if not file.is_file():
                raise ValueError(f"an {what} is a file or its bytes; there is no file {value}")
            value = file.read_bytes()
        if not isinstance(value, bytes) or not value:
            raise ValueError(f"an {what} is a file or its bytes, not {_short(value)}")
        if keep is None:
            raise ValueError(f"an {what} has nowhere to be kept: make the document in a corpus stage")
        return keep(value, what)
    return store


def _short(value: Any) -> str:
    return repr(value)[:40]


KINDS: dict[str, Kind] = {kind.name: kind for kind in (
    Kind("text", pa.large_string(), _text),
    Kind("messages", pa.large_string(), _messages),
    Kind("turns", pa.large_string(), _turns),
    Kind("label", pa.large_string(), _label),
    Kind("number", pa.float64(), _number),
    Kind("image", pa.large_string(), _medium("image")),
    Kind("audio", pa.large_string(), _medium("audio")))}
"""``turns`` is a part of a conversation: a text or a list of messages, as JSON. A ``label`` is a string, be
it of a number."""


class Column(NamedTuple):
    """A column that every table has."""

    kind: str
    holds: str


SCHEMA: dict[str, Column] = {
    "id": Column("text", "unique name of the document, the same on every machine; its hash decides the "
                         "split"),
    "text": Column("text", "what is learned; of a conversation or a pair, what is said in it, so that "
                           "filters can read it"),
    "domain": Column("text", "the part of the corpus that mixtures and evaluations name"),
    "source": Column("text", "where it came from: a path as the recipe writes it, a package and its version"),
    "metadata": Column("text", "everything else that its source said of it, as a JSON object"),
    "messages": Column("messages", "a conversation as a JSON list of {role, content}; null where the "
                                   "document is none"),
    "origin": Column("text", "id of the document that this one was written from, which it shares the split "
                             "of; null: first-hand"),
    "prompt": Column("turns", "what both answers of a preference pair answer, as JSON"),
    "chosen": Column("turns", "the better answer of the pair, as JSON"),
    "rejected": Column("turns", "the other answer, as JSON"),
    "label": Column("label", "the class of the document"),
    "number": Column("number", "the number that is to be predicted of the document"),
    "image": Column("image", "reference of an image"),
    "audio": Column("audio", "reference of a sound"),
}
"""The columns that every table has; methods may add more."""
ID, TEXT, DOMAIN, SOURCE, METADATA, MESSAGES, ORIGIN, PROMPT, CHOSEN, REJECTED, LABEL = list(SCHEMA)[:11]
TYPED = tuple(name for name in SCHEMA if name not in (ID, TEXT, DOMAIN, SOURCE, METADATA, MESSAGES, ORIGIN))
"""Those of what a model reads beside text and conversations; null in all rows of most corpora."""
MEDIA = tuple(name for name, column in SCHEMA.items() if column.kind in ("image", "audio"))
ARROW = pa.schema([(name, KINDS[column.kind].arrow) for name, column in SCHEMA.items()])


def kind_of(field: pa.Field) -> str:
    """The kind of a column of a corpus: that of the schema, or what its Arrow type says; empty where nothing
    is known of it."""
    if field.name in SCHEMA:
        return SCHEMA[field.name].kind
    kind = field.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    return "number" if pa.types.is_floating(kind) or pa.types.is_integer(kind) else ""


def classes(labels: Iterable[str]) -> list[str]:
    """The classes of a corpus, in order: whole numbers by their size, else all by name."""
    found = sorted(set(labels))
    return sorted(found, key=int) if all(is_number(label) for label in found) else found


def is_number(label: str) -> bool:
    """Whether a class is a whole number."""
    return label.removeprefix("-").isdecimal()


def stored(name: str, value: Any, root: Path, keep: Keep | None) -> Any:
    """A source's value as the column ``name`` holds it; None stays None.

    Raises:
        ValueError: it is of another kind, or there is no such typed column.
    """
    if name not in TYPED:
        raise ValueError(f"there is no typed column {name!r}; there are {', '.join(TYPED)}")
    return None if value is None else KINDS[SCHEMA[name].kind].store(value, root, keep)
