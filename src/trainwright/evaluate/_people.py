"""People of a corpus: what is known of each, and where in a text about them it stands.

What knowledge_probe and memorization share.
"""
from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from trainwright.core.context import Context
from trainwright.core.errors import UserError, suggest
from trainwright.corpus.tokens import open_corpus, uniform


class Person(NamedTuple):
    """A name, the values of attributes, and texts that have them."""

    name: str
    facts: dict[str, str]
    texts: list[str]


class Read(NamedTuple):
    """A text as tokens, and where the values of attributes stand: first and last token of each."""

    ids: list[int]
    values: dict[str, tuple[int, int]]


def rows(ctx: Context, domain: str, method: str) -> Iterator[dict[str, Any]]:
    """The documents of a domain with their metadata read, in the order of a hash of their ids.

    Raises:
        UserError: the corpus has no such domain.
    """
    folder = ctx.path("data")
    known = open_corpus(folder).domains
    if domain not in known:
        raise UserError(f"{method}: the corpus has no domain {domain!r}{suggest(domain, known)}.")
    found = [row for file in sorted((folder / "documents").glob("*.parquet"))
             for row in pq.read_table(file, columns=["id", "text", "metadata", "label"],
                                      filters=[("domain", "==", domain)]).to_pylist()]
    for row in sorted(found, key=lambda row: uniform(row["id"], "people")):
        yield row | {"metadata": json.loads(row["metadata"] or "{}")}


def facts(ctx: Context, domain: str, method: str) -> dict[str, dict[str, str]]:
    """What the questions of a domain say of each person: ``name``, ``attribute`` and ``answer`` in their
    metadata."""
    found: dict[str, dict[str, str]] = {}
    for row in rows(ctx, domain, method):
        known = row["metadata"]
        if {"name", "attribute", "answer"} <= set(known):
            found.setdefault(known["name"], {})[known["attribute"]] = known["answer"]
    return found


def people(ctx: Context, questions: str, texts: str, method: str) -> list[Person]:
    """The people about whom a domain has questions, with the texts of another domain about them."""
    known = facts(ctx, questions, method)
    said: dict[str, list[str]] = {}
    for row in rows(ctx, texts, method) if known else ():
        said.setdefault(row["metadata"].get("name", ""), []).append(row["text"] or "")
    return [Person(name, known[name], said.get(name, [])) for name in sorted(known)]


def read(tokenizer: Any, text: str, known: dict[str, str]) -> Read:
    """The tokens of a text, and where values stand in it; a value that it has twice, or not, is left out."""
    made = tokenizer(text, return_offsets_mapping=True)
    values = {}
    for attribute, value in known.items():
        if text.count(value) != 1:
            continue
        begin = text.index(value)
        inside = [i for i, (a, b) in enumerate(made["offset_mapping"])
                  if b > begin and a < begin + len(value) and b > a]
        if inside and inside[0] > 0:
            values[attribute] = inside[0], inside[-1]
    return Read(list(made["input_ids"]), values)
