"""Methods and artifacts as people read them in a terminal. Imports no torch: ``list`` answers at once."""
from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from trainwright.core import registry
from trainwright.core.card import Card, Setting, kinds
from trainwright.core.errors import UserError, suggest
from trainwright.core.settings import groups_of
from trainwright.core.source import ROOT
from trainwright.report.numbers import interval
from trainwright.storage.artifact import Artifact
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
    words, measured = (search or "").lower().split(), {f.stem: f for f in evidence_files()}
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
            if c.name in measured:
                lines.append(indented(effect(measured[c.name]), width), "dim")
    return lines.append(f"{count} methods; trainwright show METHOD tells more", "dim italic")


def indented(text: str, width: int) -> str:
    """A paragraph in lines of at most ``width`` characters, set off by six blanks; ends its last line."""
    lines = textwrap.wrap(
        text, width, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False
    )
    return "".join(f"{line}\n" for line in lines)


def known(name: str) -> Card:
    """The card of an installed method.

    Raises:
        UserError: there is none of this name.
    """
    if name not in registry.cards():
        raise UserError(f"there is no method {name!r}{suggest(name, registry.cards())}.")
    return registry.cards()[name]


def shown(name: str, store: Store) -> Group:
    """The card of an installed method, or of an artifact in the store.

    Raises:
        UserError: there is none of this name.
    """
    if name not in registry.cards():
        found = [a for a in store.artifacts() if name in (a.path.name, a.manifest["stage"])]
        if found:
            return artifact_card(found[-1])
    return card(known(name))


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
        counted = [Text(), curated.table(manifest["figures"])]
    more = Text(f"trainwright store show {artifact.path.name} prints all of it", "dim")
    return Group(head, Text(), *lines, *counted, Text(), more)


def card(c: Card) -> Group:
    """What a method does, its settings, its evidence."""
    head = Text.assemble((c.name, "bold cyan"), f"  {c.kind}" + (f" in {c.folder}" if c.folder else ""))
    settings = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("setting", "type", "default", "what it means"):
        settings.add_column(column, style="cyan" if column == "setting" else "")
    for name, kind, default, doc in settings_of(c):
        shown = Text(default) if default else Text("needed", "red")
        settings.add_row(Text(name), Text(kind), shown, Text(doc))
    parts: list[Any] = [head, Text(), Text(c.doc.strip()), Text()]
    parts += [settings, Text()] if settings.row_count else [Text("It has no settings."), Text()]
    return Group(*parts, Text(evidence(c.name)))


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


def evidence(name: str) -> str:
    """What was measured against the paper's claim, in a sentence."""
    file = next((f for f in evidence_files() if f.stem == name), None)
    if file is None:
        return "evidence: none here."
    return f"evidence: {evidence_sentence(json.loads(file.read_text(encoding='utf-8')))}"


def effect(file: Path) -> str:
    """The verdict on a claim and the measured effect, in a few words."""
    found = json.loads(file.read_text(encoding="utf-8"))
    if "difference" not in found:
        return str(found.get("verdict", "not measured"))
    paid = f" ({found['reason']})" if found["verdict"] == "contradicted" and found["reason"] else ""
    difference, ends = interval(found["metric"], found["difference"], found["low"], found["high"])
    return f"{found['verdict']}{paid}: {found['metric']} {difference} {ends}".rstrip()


def evidence_files() -> list[Path]:
    """What ``trainwright bench`` wrote: packed with an installed package, in the checkout otherwise."""
    packed = ROOT / "evidence"
    return sorted((packed if packed.is_dir() else ROOT.parents[1] / "evidence").glob("*.json"))


def evidence_sentence(found: dict[str, Any]) -> str:
    """Evidence as people read it."""
    if "difference" not in found:
        return ": ".join(found[name] for name in ("verdict", "reason") if found.get(name))
    reason = f" ({found['reason']})" if found.get("reason") else ""
    return (
        f"{found['verdict']}{reason}: {found['metric']} {found['difference']:+.4g} "
        f"[{found['low']:+.4g}, {found['high']:+.4g}] "
        f"against {found['baseline']}, {found['seeds']} seeds; the paper: {found['claim']}"
    )


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
