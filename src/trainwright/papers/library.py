"""All papers, and the taxonomies in which they have their places. Read once, without torch."""
from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trainwright.core import registry
from trainwright.core.errors import UserError, suggest
from trainwright.core.settings import make
from trainwright.core.source import ROOT
from trainwright.papers.paper import Paper, parse

FOLDER = Path(__file__).parent
RECIPES = ROOT.parents[1] / "recipes"
"""The recipes of a checkout; an installed package has none."""


@dataclass(frozen=True, kw_only=True)
class Class:
    """A class of a taxonomy."""

    id: str
    """What papers call it."""
    name: str
    """What people read."""
    about: str
    """What belongs there."""


@dataclass(frozen=True, kw_only=True)
class Taxonomy:
    """How a survey divides its field."""

    id: str
    """The survey's id."""
    title: str
    """The survey's title, perhaps shortened."""
    source: str
    """Where the classes come from."""
    classes: tuple[Class, ...]
    """In the survey's order."""

    def name(self, of: str) -> str:
        """The name of a class."""
        return next(c.name for c in self.classes if c.id == of)


@cache
def papers() -> dict[str, Paper]:
    """Every paper by its id, sorted."""
    return read(FOLDER)


def read(folder: Path) -> dict[str, Paper]:
    """The papers of a folder.

    Raises:
        UserError: a file that is no paper, two papers with one number on arXiv, a place that a taxonomy has
            not.
    """
    found: dict[str, Paper] = {}
    numbers: dict[str, str] = {}
    for file in sorted(folder.glob("*.toml")):
        paper = parse(_table(file), file.stem, file.name)
        if paper.arxiv:
            if not re.fullmatch(r"\d{4}\.\d{4,5}", paper.arxiv):
                raise UserError(f"{file.name}: arxiv = {paper.arxiv!r} is no number such as 2503.01905.")
            if paper.arxiv in numbers:
                raise UserError(f"{file.name}: arXiv {paper.arxiv} is {numbers[paper.arxiv]}.toml already.")
            numbers[paper.arxiv] = file.name.removesuffix(".toml")
        _check_place(paper, file.name)
        found[paper.id] = paper
    return found


def _check_place(paper: Paper, where: str) -> None:
    for survey, of in paper.place.items():
        if survey not in taxonomies():
            raise UserError(f"{where}: there is no taxonomy {survey!r}{suggest(survey, taxonomies())}.")
        known = [c.id for c in taxonomies()[survey].classes]
        if of not in known:
            raise UserError(f"{where}: {survey} has no class {of!r}{suggest(of, known)}.")


@cache
def taxonomies() -> dict[str, Taxonomy]:
    """The taxonomies by the id of their survey."""
    found = {}
    for file in sorted((FOLDER / "taxonomies").glob("*.toml")):
        table = _table(file)
        classes = tuple(make(Class, one, f"{file.name}: class") for one in table.pop("class", ()))
        found[file.stem] = make(Taxonomy, table | {"id": file.stem, "classes": classes}, file.name)
    return found


def _table(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{file.name}: {error}.") from None


def find(name: str) -> Paper:
    """A paper by its id, its number on arXiv, or the name of a method of it.

    Raises:
        UserError: there is none.
    """
    number = name.removeprefix("arXiv:").strip()
    for paper in papers().values():
        if number in (paper.id, paper.arxiv) or name.replace("_", "-") == paper.id:
            return paper
    mine = [p for p in papers().values() if name in methods(p)]
    if not mine:
        raise UserError(f"there is no paper {name!r}{suggest(name, papers())}; `trainwright papers` lists "
                        "all.")
    return mine[0]


@cache
def _cited() -> dict[str, tuple[str, ...]]:
    """Numbers on arXiv, and the installed methods whose docstring names them."""
    found: dict[str, list[str]] = {}
    for card in registry.cards().values():
        for number in dict.fromkeys(re.findall(r"arXiv[:\s]\s*(\d{4}\.\d{4,5})", card.doc)):
            found.setdefault(number, []).append(card.name)
    return {number: tuple(names) for number, names in found.items()}


def methods(paper: Paper) -> tuple[str, ...]:
    """The installed methods that belong to a paper: those that name its number, and those that it names."""
    return tuple(dict.fromkeys((*_cited().get(paper.arxiv, ()), *paper.methods)))


@cache
def _recipes() -> dict[str, str]:
    return {f.name: f.read_text(encoding="utf-8") for f in sorted(RECIPES.glob("*.toml"))}


def recipes(paper: Paper) -> tuple[str, ...]:
    """The recipes that name a paper's number on arXiv."""
    return tuple(name for name, text in _recipes().items() if paper.arxiv and paper.arxiv in text)


def search(among: Iterable[Paper], words: str) -> list[Paper]:
    """Papers that have all of these words somewhere in their card."""
    wanted = words.lower().split()
    return [p for p in among if all(w in text_of(p) for w in wanted)]


def text_of(paper: Paper) -> str:
    """All that a search looks through."""
    places = [taxonomies()[survey].name(of) for survey, of in paper.place.items()]
    parts = (paper.id, paper.title, paper.about, paper.kind, paper.stage, paper.topic, paper.modality,
             paper.arxiv, *methods(paper), *places, *(c.says for c in paper.claims))
    return " ".join(parts).lower()
