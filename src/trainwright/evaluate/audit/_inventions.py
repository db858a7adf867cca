"""Facts that nobody knows, as passages in several wordings and as questions on three levels.

An invented city, its land, its river and what it is known for. Memorization asks in the words of the first
passage; generalization in words of no passage; composition for what follows from two sentences of it.
"""
from __future__ import annotations

from typing import NamedTuple

import torch

LEVELS = ("memorization", "generalization", "composition")
FIRST = ("Ar", "Bel", "Cor", "Dun", "Esk", "Fal", "Gor", "Hul", "Ith", "Jor", "Kel", "Lor", "Mar", "Nor",
         "Ost", "Pel")
LAST = ("ada", "bria", "dun", "eth", "fora", "gand", "holm", "isk", "ket", "lund", "mere", "nia", "oth",
        "pol", "rad", "sund")
TRADES = ("glass", "salt", "bells", "silk", "honey", "ships", "clocks", "wool")
PASSAGES = (
    "{city} rules {land}. Its river is {river}, its pride {trade}.",
    "{land} has {city}, the {river} and {trade}.",
    "By the {river} lies {city} of {land}, rich in {trade}.",
    "{land} is led from {city} on the {river}, with its {trade}.",
    "To {city} in {land} one sails the {river} for {trade}.")
ASKED = {
    "memorization": (("{city} rules", "land"), ("{city} rules {land}. Its river is", "river"),
                     ("{city} rules {land}. Its river is {river}, its pride", "trade")),
    "generalization": (("{land} has its king in", "city"), ("A boat to {city} takes the", "river"),
                       ("Who visits {city} buys", "trade")),
    "composition": (("The king of {land} sees the river", "river"),
                    ("The king of {land} lives among makers of", "trade"))}


class Probe(NamedTuple):
    """The beginning of a sentence, and how it ends."""

    prompt: str
    target: str


class Fact(NamedTuple):
    """Passages that say the same, and what may be asked, by level."""

    passages: tuple[str, ...]
    probes: dict[str, tuple[Probe, ...]]


def invented(many: int, rng: torch.Generator) -> list[Fact]:
    """Facts whose names are all different, as long as there are some left."""
    names = [a + b for a in FIRST for b in LAST]
    order = torch.randperm(len(names), generator=rng).tolist()
    out = []
    for i in range(many):
        city, land, river = (names[order[(3 * i + k) % len(order)]] for k in range(3))
        trade = TRADES[int(torch.randint(len(TRADES), (1,), generator=rng))]
        words = {"city": city, "land": land, "river": river, "trade": trade}
        probes = {level: tuple(Probe(prompt.format(**words), f" {words[what]}") for prompt, what in asked)
                  for level, asked in ASKED.items()}
        out.append(Fact(tuple(passage.format(**words) for passage in PASSAGES), probes))
    return out
