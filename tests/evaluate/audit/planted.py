"""Leaks that are planted: items of an exam, and documents that hold them in five shapes, or do not."""
from __future__ import annotations

import textwrap
from typing import NamedTuple

import numpy as np

from trainwright.evaluate.audit._items import Item

SHAPES = ("verbatim", "re-wrapped", "embedded", "reordered", "paraphrased")
VOCABULARY = 3000


class Planted(NamedTuple):
    """Items, documents that leak them by shape and item, and documents that leak none."""

    items: list[Item]
    leaks: dict[str, dict[int, str]]
    clean: list[str]


def plant(many: int = 60, clean: int = 300, seed: int = 0) -> Planted:
    """Words are drawn as in language: the n-th most frequent one in proportion to 1 / n. So clean documents
    share the frequent runs with items, as real ones do."""
    draw = np.random.default_rng(seed)
    weights = 1 / np.arange(1, VOCABULARY + 1)
    weights /= weights.sum()

    def say(words: int) -> str:
        return " ".join(f"w{i}" for i in draw.choice(VOCABULARY, words, p=weights))
    items = [Item(say(int(draw.integers(9, 30))) + "?", tuple(say(4) for _ in range(4)), 0)
             for _ in range(many)]
    leaks = {shape: {i: _shaped(shape, one, say, draw) for i, one in enumerate(items)} for shape in SHAPES}
    return Planted(items, leaks, [say(int(draw.integers(80, 600))) for _ in range(clean)])


def _shaped(shape: str, item: Item, say, draw: np.random.Generator) -> str:  # type: ignore[no-untyped-def]
    """An item as a document of a corpus may hold it."""
    if shape == "re-wrapped":
        return textwrap.fill(item.text.replace("\n", " ").upper(), 23)
    if shape == "embedded":
        return f"{say(400)} {item.text} {say(400)}"
    if shape == "reordered":
        order = draw.permutation(len(item.choices))
        while (order == np.arange(len(order))).all():
            order = draw.permutation(len(item.choices))
        return "\n".join([item.question, *(f"({n}) {item.choices[i]}" for n, i in enumerate(order, 1))])
    if shape == "paraphrased":
        words = item.text.split()
        for at in range(int(draw.integers(7)), len(words), 7):
            words[at] = say(1)
        return " ".join(words)
    return item.text
