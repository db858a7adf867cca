"""The field map: every paper in the taxonomies of the surveys, with what became of its claims, as one page
that needs no network."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainwright.papers import evidence, library
from trainwright.papers.evidence import Told
from trainwright.papers.paper import STAGES, Paper
from trainwright.report import interval, papers

TEMPLATE = Path(__file__).parent / "templates" / "field.html"
HERE = "/*DATA*/null"
"""What the data take the place of."""


def page(links: bool = False) -> str:
    """The page. With ``links`` each card leads to the paper's own page, as in the documentation."""
    text = TEMPLATE.read_text(encoding="utf-8")
    data = json.dumps(tables(links), ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    return text.replace(HERE, data)


def tables(links: bool) -> dict[str, Any]:
    """All that the page shows."""
    views = [{"id": "stage", "title": "Stages of a model's life",
              "source": "Where in a model's life a paper belongs.",
              "classes": [{"id": s, "name": s.capitalize(), "about": ""} for s in STAGES]}]
    for taxonomy in library.taxonomies().values():
        views.append({"id": taxonomy.id, "title": taxonomy.title, "source": taxonomy.source,
                      "classes": [{"id": c.id, "name": c.name, "about": c.about} for c in taxonomy.classes]})
    return {"views": views, "words": list(evidence.WORDS), "states": list(evidence.STATES), "links": links,
            "papers": [_paper(p) for p in library.papers().values()]}


def _paper(paper: Paper) -> dict[str, Any]:
    """A paper as the page draws it."""
    told = evidence.told(paper)
    return {"id": paper.id, "title": paper.title, "year": paper.year, "about": paper.about,
            "kind": paper.kind, "modality": paper.modality, "topic": paper.topic, "link": paper.link,
            "place": {"stage": paper.stage, **paper.place}, "companion": paper.companion,
            "methods": library.methods(paper), "recipes": library.recipes(paper),
            "state": evidence.state(paper), "claims": [_claim(one) for one in told]}


def _claim(one: Told) -> dict[str, Any]:
    drawn = interval.svg(one.verdict, one.claim.metric) if one.verdict else ""
    return {"says": one.claim.says, "word": one.word, "told": papers.sentence(one), "svg": drawn}
