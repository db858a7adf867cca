"""Commands on papers: papers, reproduce, map. Heavy imports wait."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainwright.cli_compare import StoreDir
from trainwright.core.errors import UserError
from trainwright.report.terminal import Terminal, styled

if TYPE_CHECKING:
    from trainwright.papers.paper import Claim, Paper


def papers(search: Annotated[str | None, typer.Option(
               help="Only papers whose card has all of these words.", show_default=False)] = None,
           open_only: Annotated[bool, typer.Option(
               "--open",
               help="Only papers with a claim that can be tested and was not measured yet.")] = False,
           verdict: Annotated[str | None, typer.Option(
               show_default=False, help="Only papers with a claim of this verdict: reproduced, weaker, "
                                        "[cyan]\"no difference\"[/], contradicted, "
                                        "[cyan]\"not tested\"[/].")] = None) -> None:
    """List the papers of the field, also those that are not runnable here yet: what each is about, and what
    became of its claims."""
    from trainwright.report import papers as pages
    console = Terminal()
    console.print(pages.listing(search, open_only, verdict, max(40, min(console.width, 110))))


def reproduce(paper: Annotated[str | None, typer.Argument(
                  help="A paper's id, its number on arXiv, or a method of it.", show_default=False)] = None,
              claim: Annotated[int | None, typer.Option(
                  min=1, show_default=False,
                  help="Only this claim, as numbered on the paper's card.")] = None,
              every: Annotated[bool, typer.Option(
                  "--all", help="Every claim without a measurement of today's code; says first what it "
                                "would take, and resumes where it stopped.")] = False,
              dry_run: Annotated[bool, typer.Option(
                  "--dry-run", help="Say what it would take; then stop.")] = False,
              evidence: Annotated[Path, typer.Option(help="Folder for ID.json.")] = Path("evidence"),
              jobs: Annotated[int, typer.Option(
                  min=0, help="Runs at a time, in processes; 0: one for each core, or one on a GPU.")] = 0,
              store: StoreDir = Path("store")) -> None:
    """Measure what a paper claims, arm against arm over paired seeds, and write the verdicts."""
    from trainwright.papers import library
    if (paper is None) != every:
        raise UserError("name the paper whose claims are measured, or say --all.")
    if every:
        from trainwright.compare.reproduce import due
        todo = due(library.papers().values(), evidence)
    else:
        found = library.find(str(paper))
        todo = [(found, _chosen(found, claim))]
    _announce(todo, evidence)
    if not dry_run:
        for one, claims in todo:
            _measure(one, claims, evidence, jobs, store)


def _chosen(paper: Paper, number: int | None) -> list[Claim]:
    """The claims to measure; an untested one, or none at all, is a mistake."""
    if number is not None and number > len(paper.claims):
        raise UserError(f"{paper.id} has {len(paper.claims)} claims, and --claim {number} is none of them.")
    mine = list(paper.claims) if number is None else [paper.claims[number - 1]]
    testable = [c for c in mine if not c.not_tested]
    if not testable:
        why = f": {mine[0].not_tested}, as {mine[0].why}" if mine else " states no claim that could be tested"
        raise UserError(f"{paper.id}{why}.")
    return testable


def _announce(todo: Sequence[tuple[Paper, list[Claim]]], evidence: Path) -> None:
    """What it would take, before it starts: what it took last time, or a guess where nothing is known."""
    from trainwright.compare import reproduce
    from trainwright.papers import evidence as kept
    from trainwright.report.numbers import duration
    groups = [(paper, group) for paper, claims in todo for group in reproduce.together(claims)]
    prices = [reproduce.price(group[0], kept.read(paper, evidence)) for paper, group in groups]
    guessed = prices.count(None)
    total = sum(reproduce.USUAL if p is None else p for p in prices)
    how = "as last time" if not guessed else (
        f"{duration(reproduce.USUAL)} assumed for each of the {guessed} that were not timed yet")
    claims = sum(len(found) for _, found in todo)
    Terminal().print(f"{claims} claims of {len(todo)} papers in {len(groups)} comparisons: about "
                     f"{duration(total)}, {how}.", soft_wrap=True)


def _measure(paper: Paper, claims: list[Claim], evidence: Path, jobs: int, store: Path) -> None:
    from trainwright.compare import reproduce
    from trainwright.report import papers as pages
    from trainwright.report.comparison.progress import ComparisonProgress
    from trainwright.storage.store import Store
    watch = ComparisonProgress("")
    try:
        told = reproduce.reproduce(paper, claims, Store(store), evidence, watch,
                                   jobs or reproduce.at_a_time())
    finally:
        watch.close()
    for one in told:
        if one.claim in claims:
            line = styled("[cyan]{}[/] {}: {}. {}", paper.id, one.claim.says, one.word, pages.sentence(one))
            Terminal().print(line, soft_wrap=True)


def field_map(out: Annotated[Path, typer.Option(help="The page to write.")] = Path("map.html")) -> None:
    """Write the field map: every paper in the taxonomies of eight surveys, with what became of its claims. It
    is one file that needs no network."""
    from trainwright.report import field
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(field.page(), encoding="utf-8")
    Terminal().print(f"wrote {out}", soft_wrap=True)
