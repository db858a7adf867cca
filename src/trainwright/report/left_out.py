"""What a corpus left out, as people look at it: dropped documents beside those that they were dropped for."""
from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trainwright.core.errors import UserError, suggest
from trainwright.corpus import left_out
from trainwright.report.numbers import value
from trainwright.storage.artifact import Artifact

SHOWN = 400
"""Characters of a text in a terminal, and on a page."""
ON_PAGE = 5
"""Examples of a method on a page."""


def shown(artifact: Artifact, by: str | None, most: int) -> Group:
    """Examples of dropped documents for the terminal, ``most`` of each method, or of one method alone.

    Raises:
        UserError: the artifact is no corpus, or none that this method acted on.
    """
    if "curated" not in artifact.figures:
        raise UserError(f"{artifact.path.name} is no corpus: only a corpus drops documents.")
    counted = {row["method"]: row["dropped"] for row in artifact.figures["curated"]}
    counted["corpus"] = artifact.figures.get("empty_documents", 0)
    if by is not None and by not in counted:
        raise UserError(f"{artifact.path.name}: no method {by!r} acted on it{suggest(by, counted)}.")
    if not (counted[by] if by is not None else sum(counted.values())):
        return Group(Text(f"{artifact.path.name if by is None else by} dropped no document."))
    rows = left_out.examples(artifact.path)
    parts: list[Any] = []
    for method in [by] if by is not None else [name for name, many in counted.items() if many]:
        mine = [row for row in rows if row["method"] == method][:most]
        many = f"{counted[method]:,} documents" if counted[method] > 1 else "1 document"
        some = f"; {len(mine)} of them" if len(mine) < counted[method] else ""
        parts += [Text(f"{method} dropped {many}{some}", "bold"), Text()]
        for row in mine:
            parts += [Padding(_pair(row), (0, 0, 1, 2))]
    return Group(*parts)


def _pair(row: dict[str, Any]) -> Table:
    """One example: the dropped text, and beside it the one that was kept instead."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=False, expand=True)
    why = Text(because(row), "yellow")
    if row["partner_text"] is None:
        table.add_column(ratio=1)
        table.add_row(Text.assemble((row["id"], "cyan"), "  ", why))
        table.add_row(Text(brief(row["text"])))
        return table
    table.add_column(ratio=1)
    table.add_column(ratio=1)
    table.add_row(Text.assemble((row["id"], "cyan"), "  ", why), Text(row["partner"], "green"))
    table.add_row(Text(brief(row["text"])), Text(brief(row["partner_text"])))
    return table


def because(row: dict[str, Any]) -> str:
    """Why a document was dropped, in a line."""
    parts = [row["reason"] or row["method"]]
    score = row["score"]
    if score is not None:
        parts.append(f"{score:,.0f}" if score == round(score) else value(score))
    if row["partner"] is not None:
        parts.append(f"of {row['partner']}")
    return " · ".join(parts)


def brief(text: str) -> str:
    """The beginning of a text."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN].rstrip()} …"


def for_page(artifact_folder: Any) -> list[tuple[str, list[dict[str, str | None]]]]:
    """Of each method the first examples: ``id``, ``why``, ``text``, and ``partner`` with ``partner_text``
    where there is one."""
    found: dict[str, list[dict[str, str | None]]] = {}
    for row in left_out.examples(artifact_folder):
        mine = found.setdefault(row["method"], [])
        if len(mine) < ON_PAGE:
            other = row["partner_text"]
            mine.append({"id": row["id"], "why": because(row), "text": brief(row["text"]),
                         "partner": row["partner"], "partner_text": None if other is None else brief(other)})
    return list(found.items())
