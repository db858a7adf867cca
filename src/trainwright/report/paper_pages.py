"""Papers as pages of the documentation: a page each, their index, and the evidence by paper. Markdown."""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from trainwright.papers import evidence, library
from trainwright.papers.evidence import Told
from trainwright.papers.paper import STAGES, Paper
from trainwright.report import interval, papers, suite_pages
from trainwright.report.numbers import NONE, duration

HEAD = ("claim", "verdict", "difference", "measured", "price")
MEANS = {
    "reproduced": "The claimed direction was found, and the interval reaches the factor where one is "
                  "claimed; or what is claimed to be as good is, within the margin.",
    "weaker": "The direction was found, the factor was not.",
    "no difference": "Neither the claim nor its opposite can be told with so many seeds at this scale.",
    "contradicted": "The opposite was found.",
    "not tested": "Nothing was measured, for a reason that stands beside it.",
    "open": "It can be tested here, and was not measured yet.",
}


def pages() -> dict[str, str]:
    """Path to text of every paper's page and of their index."""
    found = {f"papers/{p.id}.md": page(p) for p in library.papers().values()}
    return found | {"papers/index.md": index()}


def by_stage() -> dict[str, list[Paper]]:
    """The papers by the stage of a model's life that they are about."""
    every = list(library.papers().values())
    return {stage: [p for p in every if p.stage == stage] for stage in STAGES}


def page(paper: Paper) -> str:
    """What a paper is, its places in the field, and what became of its claims."""
    where = f"{paper.kind.capitalize()}, {paper.year}; {paper.stage}, {plain(paper.modality)}."
    link = f" [arXiv {paper.arxiv}]({paper.link})." if paper.link else ""
    mine = [f"[`{m}`](../methods/{m}.md)" for m in library.methods(paper)]
    mine += [f"`recipes/{r}`" for r in library.recipes(paper)]
    here = f"Here: {', '.join(mine)}." if mine else "Nothing of it runs here yet."
    parts = [f"# {plain(paper.title)}", plain(paper.about), where + link, here]
    if paper.place:
        rows = [(f"[{plain(library.taxonomies()[s].title)}]({s}.md)", plain(library.taxonomies()[s].name(of)))
                for s, of in paper.place.items()]
        parts += ["## In the field", table(("survey", "class"), rows)]
    told = evidence.told(paper)
    if told:
        parts += ["## Claims", table(HEAD, [row(one) for one in told]),
                  f"`trainwright reproduce {paper.id}` measures them."]
    own = library.taxonomies().get(paper.id)
    if own is not None:
        parts += ["## How it divides the field", plain(own.source), *_classes(paper)]
    return "\n\n".join(parts) + "\n"


def _classes(survey: Paper) -> list[str]:
    """Of a survey: its classes with the papers in them."""
    out = []
    for one in library.taxonomies()[survey.id].classes:
        inside = [f"[{p.id}]({p.id}.md)" for p in library.papers().values()
                  if p.place.get(survey.id) == one.id]
        out.append(f"**{plain(one.name)}.** {plain(one.about)} {', '.join(inside) or NONE}")
    return out


def index() -> str:
    """All papers by stage, with their verdicts."""
    out = ["# Papers", f"{len(library.papers())} papers, by the stage of a model's life that they are about. "
           "[The field map](../map.html) shows them as the surveys divide them."]
    for stage, found in by_stage().items():
        rows = [(f"[{p.id}]({p.id}.md)", str(p.year), plain(p.about), counted(evidence.words(p)))
                for p in found]
        if rows:
            out += [f"## {stage.capitalize()}", table(("paper", "year", "what it does", "claims"), rows)]
    return "\n\n".join(out) + "\n"


def evidence_tables() -> str:
    """By paper: what was claimed, what was measured, and at which price."""
    mine = [(p, evidence.told(p)) for p in library.papers().values() if p.claims]
    total = Counter(one.word for _, told in mine for one in told)
    rows = [(word, str(total[word]), MEANS[word]) for word in evidence.WORDS]
    stale = sum(bool(evidence.old(one)) for _, told in mine for one in told)
    out = [table(("verdict", "claims", "what it means"), rows)]
    if stale:
        out.append(f"{stale} measurements are older than the code that they measured, and say so.")
    out += ["## The suites", suite_pages.tables()]
    for paper, told in sorted(mine, key=lambda one: (STAGES.index(one[0].stage), one[0].id)):
        out += [f"## [{paper.id}](papers/{paper.id}.md)", plain(paper.title),
                table(HEAD, [row(one) for one in told])]
    return "\n\n".join(out) + "\n"


def row(one: Told) -> tuple[str, ...]:
    """A claim with its verdict, its interval as a drawing and in numbers, and what it cost."""
    claim = one.claim
    if one.verdict is None:
        return plain(claim.says), f"**{one.word}**", "", plain(papers.sentence(one)), ""
    past = evidence.old(one)
    word = f"**{one.word}**" + (f"<br>*old: {past}*" if past else "")
    found = f"{plain(papers.effect(one))}; {plain(claim.compares)}, {plain(claim.place)}."
    note = f" {plain(one.entry['note'])}" if one.entry and one.entry["note"] else ""
    return plain(claim.says), word, interval.svg(one.verdict, claim.metric), found + note, price(one)


def price(one: Told) -> str:
    """Seeds, runs and time of a measurement, what the machine was fast at, and what else got worse."""
    assert one.verdict is not None and one.entry is not None
    took = one.entry["seconds"]
    parts = [f"{one.verdict['n']} seeds, {one.entry['runs']} runs" + (f", {duration(took)}" if took else "")]
    if "precision" in one.entry:
        parts.append(f"`precision = \"auto\"` was {one.entry['precision']}")
    parts += [told for told in (suite_pages.noise(one.claim.suite, one.claim.metric), doubt(one)) if told]
    if one.worse:
        parts.append("worse: " + ", ".join(f"`{r['metric']}`" for r in one.worse))
    return "; ".join(parts)


def doubt(one: Told) -> str:
    """That a trick gains more on the suite's baseline than the claim does, where it is one of a gain."""
    assert one.verdict is not None and one.entry is not None
    if not one.claim.gains:
        return ""
    return suite_pages.doubts(one.claim.suite, one.claim.metric, one.verdict["difference"],
                              one.entry["better"], set(evidence.code_of(one.claim)))


def counted(words: Counter[str]) -> str:
    """How many claims have which verdict."""
    return ", ".join(f"{words[w]} {w}" for w in evidence.WORDS if words[w])


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(" ".join(c.split()) for c in r) + " |" for r in rows)])


def plain(text: str) -> str:
    """Text that Markdown takes as it is."""
    return re.sub(r"([\\`*_<\[\]#$~|])", r"\\\1", text)
