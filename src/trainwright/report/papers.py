"""Papers as people read them in a terminal: the list, and a paper's card with its claims and verdicts.
Imports no torch."""
from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Group
from rich.text import Text

from trainwright.core.errors import UserError, suggest
from trainwright.papers import evidence, library
from trainwright.papers.evidence import Told
from trainwright.papers.paper import STAGES, Paper
from trainwright.report.numbers import NONE, quantity, value
from trainwright.report.wrapped import indented

STYLES = {"reproduced": "green", "weaker": "yellow", "no difference": "", "contradicted": "red",
          "not tested": "dim", "open": "cyan"}
"""How a word is drawn."""


def listing(search: str | None, open_only: bool, verdict: str | None, width: int = 110) -> Text:
    """The papers by stage of life, each with what became of its claims.

    Raises:
        UserError: an unknown verdict.
    """
    if verdict is not None and verdict not in evidence.WORDS:
        raise UserError(f"there is no verdict {verdict!r}{suggest(verdict, evidence.WORDS)}.")
    chosen = library.search(library.papers().values(), search or "")
    lines, total, place = Text(), Counter[str](), ""
    shown = 0
    for paper in sorted(chosen, key=lambda p: (STAGES.index(p.stage), p.id)):
        words = evidence.words(paper)
        if (open_only and not words[evidence.OPEN]) or (verdict is not None and not words[verdict]):
            continue
        if paper.stage != place:
            lines.append(f"{paper.stage}\n", "bold")
        place, shown = paper.stage, shown + 1
        total.update(words)
        lines.append(f"  {paper.id}", "cyan").append(f"  {paper.year}  {paper.kind}, {paper.modality}  ")
        lines.append_text(counted(words) if words else Text(_here(paper), "dim")).append("\n")
        lines.append(indented(paper.about, width))
    end = f"{shown} papers" + (f", {total.total()} claims: {counted(total).plain}" if total else "")
    return lines.append(f"{end}; trainwright show ID tells more", "dim italic")


def _here(paper: Paper) -> str:
    mine = (*library.methods(paper), *library.recipes(paper))
    return f"here: {', '.join(mine)}" if mine else "not runnable here yet"


def counted(words: Counter[str]) -> Text:
    """How many claims have which word: ``2 reproduced, 1 open``."""
    return Text(", ").join(Text(f"{words[w]} {w}", STYLES[w]) for w in evidence.WORDS if words[w])


def card(paper: Paper) -> Group:
    """What a paper is, where it stands in the field, and what became of each of its claims."""
    head = Text.assemble((paper.id, "bold cyan"), f"  {paper.kind} of {paper.year}, {paper.stage}, "
                         f"{paper.modality}")
    parts: list[Any] = [head, Text(paper.title, "bold"), Text(paper.about), Text()]
    if paper.link:
        parts.append(Text(paper.link))
    mine = (*library.methods(paper), *library.recipes(paper))
    parts.append(Text(f"here: {', '.join(mine)}" if mine else "not runnable here yet"))
    for survey, of in paper.place.items():
        taxonomy = library.taxonomies()[survey]
        parts.append(Text.assemble((f"{survey}: ", "dim"), taxonomy.name(of)))
    told = evidence.told(paper)
    parts += [Text(), Text(f"{len(told)} claims", "bold")] if told else []
    for number, one in enumerate(told, 1):
        parts.append(_claim(number, one))
    if told:
        parts.append(Text(f"\ntrainwright reproduce {paper.id} measures them", "dim"))
    return Group(*parts)


def _claim(number: int, one: Told) -> Text:
    claim = one.claim
    said = Text.assemble(f"{number}. ", claim.says, "  ", (one.word, STYLES[one.word]))
    return said.append("\n").append(indented(sentence(one), 100), "dim")


def sentence(one: Told) -> str:
    """What was measured of a claim, and at which price; or why nothing was."""
    claim = one.claim
    if one.verdict is None:
        if claim.not_tested:
            return f"{claim.not_tested}: {claim.why}."
        note = (one.entry or {}).get("note", "")
        return f"{claim.compares} in {claim.place}, by {claim.metric}: not measured yet. {note}".strip()
    told = [f"{claim.compares} in {claim.place}: {effect(one)}, {one.verdict['n']} seeds."]
    if one.worse:
        told.append(f"Worse: {', '.join(r['metric'] for r in one.worse)}.")
    note = one.entry["note"] if one.entry else ""
    past = evidence.old(one)
    return " ".join([*told, *([note] if note else []), *([f"Old: {past}."] if past else [])])


def effect(one: Told) -> str:
    """The difference with its interval, and the factor where one is claimed."""
    found, metric = one.verdict, one.claim.metric
    assert found is not None
    ends = f"[{quantity_signed(metric, found['low'])}, {quantity_signed(metric, found['high'])}]"
    factor = ""
    if isinstance(found["expects"], dict) and "as_good" not in found["expects"] and found["ratio"]:
        low, high = (NONE if found[k] is None else value(found[k]) for k in ("ratio_low", "ratio_high"))
        factor = f", {value(found['ratio'])} times as much [{low}, {high}]"
    same = found["low"] == found["high"]
    return f"{metric} {quantity_signed(metric, found['difference'])}{'' if same else f' {ends}'}{factor}"


def quantity_signed(metric: str, x: float) -> str:
    """A difference with its sign and its unit."""
    return f"{'−' if x < 0 else '+'}{quantity(metric, abs(x))}"


def of_method(name: str) -> list[tuple[Paper, Told]]:
    """The claims of a method's papers whose arms use it."""
    found = []
    for paper in library.papers().values():
        if paper.claims and name in library.methods(paper):
            found += [(paper, one) for one in evidence.told(paper)
                      if one.claim.not_tested or one.claim.script or name in evidence.code_of(one.claim)]
    return found
