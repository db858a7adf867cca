"""Methods and artifacts as people read them in a terminal. Imports no torch: ``list`` answers at once."""
from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, get_args

from rich.console import Group
from rich.table import Table
from rich.text import Text

from trainwright.core import registry, settings
from trainwright.core.card import Card, Setting, kinds
from trainwright.core.errors import UserError, suggest
from trainwright.core.files import expected
from trainwright.core.settings import Between, groups_of
from trainwright.papers import evidence, library
from trainwright.report import papers
from trainwright.report.wrapped import indented
from trainwright.storage.artifact import MANIFEST, Artifact
from trainwright.storage.store import Store


def listing(
    cards: list[Card], kind: str | None, folder: str | None, search: str | None, width: int = 110
) -> Text:
    """The methods by place in a life; below each what it does, and what was measured of its paper's claim.

    Raises:
        UserError: an unknown kind or folder.
    """
    asked = next((k for k in kinds() if kind is not None and k.lower() == kind.lower()), None)
    if kind is not None and asked is None:
        raise UserError(f"there is no kind {kind!r}{suggest(kind, kinds())}.")
    folders = {c.folder for c in cards} | set(registry.FOLDERS)
    if folder is not None and folder not in folders:
        raise UserError(f"there is no folder {folder!r}{suggest(folder, folders)}.")
    words, found = (search or "").lower().split(), measured()
    lines, count, place = Text(), 0, ""
    for c in sorted(cards, key=lambda c: (registry.order(c.folder), c.name)):
        text = f"{c.name} {c.kind} {c.folder} {c.doc}".lower()
        wanted = (asked is None or c.is_a(asked)) and (
            folder is None or f"{c.folder}/".startswith(f"{folder}/")
        )
        if wanted and all(w in text for w in words):
            if c.folder != place:
                lines.append(f"{c.folder}\n", "bold")
            place, count = c.folder, count + 1
            lines.append(f"  {c.name}", "cyan").append(f"  {c.kind}\n")
            lines.append(indented(c.summary, width))
            if c.name in found:
                lines.append(indented(f"claims: {papers.counted(found[c.name]).plain}", width), "dim")
    return lines.append(f"{count} methods; trainwright show METHOD tells more", "dim italic")


def shown(name: str, store: Store) -> Group:
    """The card of an installed method, of a paper, or of an artifact in the store. A method that has its
    paper's name comes first, and its paper behind it.

    Raises:
        UserError: there is none of this name.
    """
    mine = [card(registry.cards()[name])] if name in registry.cards() else []
    if name in library.papers() or name in {p.arxiv for p in library.papers().values() if p.arxiv}:
        mine.append(papers.card(library.find(name)))
    if len(mine) > 1:
        return Group(mine[0], Text(), mine[1])
    if mine:
        return mine[0]
    found = [a for a in store.artifacts() if name in (a.path.name, a.manifest["stage"])]
    if found:
        return artifact_card(found[-1])
    names = (*registry.cards(), *library.papers())
    raise UserError(f"there is no method, no paper and no artifact {name!r}{suggest(name, names)}.")


def artifact_card(artifact: Artifact) -> Group:
    """What an artifact came from; of a corpus, how many documents went in and out of each method."""
    from trainwright.report import curated  # draws, and so takes a while to import
    manifest = artifact.manifest
    finished = manifest["finished"][:16].replace("T", " ")
    head = Text.assemble((artifact.path.name, "bold cyan"), f"  {manifest['kind']}, {finished}")
    sources = ", ".join(f"{one['stage']} ({role})"
                        for role, found in manifest["inputs"].items() for one in found)
    used = ", ".join(m["use"] for m in manifest["settings"]["methods"])
    lines = [
        Text(f"from {sources}") if sources else Text("from no other artifact"),
        Text(f"methods: {used or 'none'}"),
        Text(f"made by: {manifest['command']}"),
    ]
    counted: list[Any] = []
    if manifest["figures"].get("curated"):
        with expected(artifact.path / MANIFEST):            # figures may be anything, too
            counted = [Text(), curated.table(manifest["figures"])]
    more = Text(f"trainwright store show {artifact.path.name} prints all of it", "dim")
    return Group(head, Text(), *lines, *counted, Text(), more)


def card(c: Card) -> Group:
    """What a method does, its settings, its evidence."""
    head = Text.assemble((c.name, "bold cyan"), f"  {c.kind}" + (f" in {c.folder}" if c.folder else ""))
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("setting", "type", "default", "what it means"):
        rows.add_column(column, style="cyan" if column == "setting" else "")
    for name, kind, default, doc in settings_of(c):
        shown = Text(default) if default else Text("needed", "red")
        rows.add_row(Text(name), Text(in_words(kind)), shown, Text(doc))
    parts: list[Any] = [head, Text(), Text(c.doc.strip()), Text()]
    parts += [rows, Text()] if rows.row_count else [Text("It has no settings."), Text()]
    return Group(*parts, claims(c.name))


def in_words(kind: str) -> str:
    """A type as people read it: ``Count`` is ``int (1 or more)``, a choice is its values."""
    chosen = re.sub(r"Literal\[([^\]]*)\]",
                    lambda found: found[1].replace("'", '"').replace(", ", " | "), kind)
    return re.sub(r"\b[A-Z]\w+\b", lambda found: _alias(found[0]), chosen)


def _alias(name: str) -> str:
    """What a name of ``core/settings.py`` for a type stands for; other names stay."""
    base, *limits = get_args(vars(settings).get(name)) or (None,)
    between = next((str(one) for one in limits if isinstance(one, Between)), "")
    return name if base is None else base.__name__ + (f" ({between})" if between else "")


def settings_of(c: Card) -> list[Setting]:
    """The settings of a method. A group of settings is a table, and its own settings follow it."""
    groups = {f[0] for f in c.settings if f[2].startswith(f"{f[1]}(")}
    inner = groups_of(registry.load(c.file)) if groups else {}
    rows: list[Setting] = []
    for name, kind, default, doc in c.settings:
        group = inner.get(name)
        rows.append((name, kind, default, doc) if group is None else (name, "table", "{}", doc))
        rows.extend(group or ())
    return rows


def measured() -> dict[str, Counter[str]]:
    """Of every method whose papers' claims were measured: how many claims have which verdict."""
    found: dict[str, Counter[str]] = {}
    for file in sorted(evidence.folder().glob("*.json")):
        told = json.loads(file.read_text(encoding="utf-8"))
        words = [c["verdict"]["word"] for c in told["claims"] if c["verdict"]]
        for name in told["methods"]:
            found.setdefault(name, Counter()).update(words)
    return found


def claims(name: str) -> Text:
    """What was measured against the claims of a method's papers."""
    told = papers.of_method(name)
    if not told:
        return Text("evidence: none here.")
    lines = Text("evidence\n", "bold")
    for paper, one in told:
        lines.append(f"  {paper.id}: {one.claim.says}  ").append(one.word, papers.STYLES[one.word])
        lines.append("\n").append(indented(papers.sentence(one), 100), "dim")
    return lines


def store_table(store: Store) -> Table:
    """Artifacts, oldest first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("artifact", "kind", "size", "seconds", "finished", "from"):
        table.add_column(
            column,
            justify="right" if column in ("size", "seconds") else "left",
            no_wrap=column == "artifact",
            style="cyan" if column == "artifact" else "",
        )
    for a in store.artifacts():
        m = a.manifest
        size = sum(f.stat().st_size for f in a.path.rglob("*") if f.is_file())
        sources = ", ".join(i["stage"] for inputs in m["inputs"].values() for i in inputs)
        finished = m["finished"][:16].replace("T", " ")
        numbers = f"{size / 1e6:,.1f} MB", f"{m['seconds']:,.1f}"
        table.add_row(*map(Text, (a.path.name, m["kind"], *numbers, finished, sources)))
    if not table.row_count:
        table.caption = f"{store.root} holds no artifact yet."
    return table
