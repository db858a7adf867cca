"""The entities of a document: how they are asked for, how an answer is read, and which of them are taken together."""
from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

PROMPTS = {
    "entities": "Read the document below. Which people, places, things and ideas matter? Answer with one JSON object and "
                "nothing else: \"summary\" is a summary of the document, \"entities\" a list of names.\n\nDocument:\n{text}",
    "relation": "Read the document below. Then write a text of your own that works out, from what the document says, what there "
                "is to know of these entities and how each of them bears on the others. Name them, and say nothing that the "
                "document does not support.\n\nDocument:\n{text}\n\nEntities:\n{entities}"}


class Part(NamedTuple):
    """A document, or as much of it as is read at once, with what was found in it."""

    original: str
    id: str
    text: str
    domain: str
    summary: str = ""
    entities: tuple[str, ...] = ()


def listed(answer: str) -> tuple[str, tuple[str, ...]]:
    """Summary and entities (each once) of an answer, which may stand in a fence; none where it is no such JSON object."""
    start, end = answer.find("{"), answer.rfind("}")
    try:
        found = json.loads(answer[start:end + 1])
        names = [n.strip() for n in found["entities"] if isinstance(n, str) and n.strip()]
    except (ValueError, KeyError, TypeError):
        return "", ()
    summary = found.get("summary")
    return summary.strip() if isinstance(summary, str) else "", tuple(dict.fromkeys(names))


def subsets(part: Part, sizes: Sequence[int], most: int | None, seed: int) -> Iterator[tuple[int, ...]]:
    """The relations of a part, as places in its list of entities: each unordered set once."""
    for size in sizes:
        every = list(itertools.combinations(range(len(part.entities)), size))
        if size > 2 or most is not None:
            random.Random(f"entigraph/{seed}/{size}/{part.id}").shuffle(every)
        yield from every[:most]
