"""Commands on papers: papers, reproduce, suite, map. Heavy imports wait."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainwright.cli_compare import Changes, DryRun, StoreDir
from trainwright.core.errors import UserError
from trainwright.report.terminal import Terminal, styled

if TYPE_CHECKING:
    from trainwright.compare.reproduce import Price
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
                  "--all", help="Every claim without a measurement of today's code, cheapest first; says "
                                "first what it would take, and resumes where it stopped.")] = False,
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
    from trainwright.compare import reproduce as reproducing
    from trainwright.compare.execute import at_a_time
    if every:
        todo = reproducing.due(library.papers().values(), evidence)
    else:
        found = library.find(str(paper))
        todo = [(found, _chosen(found, claim))]
    jobs = jobs or at_a_time()
    listed = reproducing.cheapest_first(todo, evidence, jobs)
    _announce(listed)
    failed = [] if dry_run else [(one.id, why) for _, one, group in listed
                                 if (why := _measured(one, group, evidence, jobs, store, len(listed) > 1))]
    for name, why in failed:
        Terminal().print(styled("[red]{}[/] was not measured: {}", name, why), soft_wrap=True)
    if failed:
        raise typer.Exit(1)


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


def _announce(listed: Sequence[tuple[Price, Paper, list[Claim]]]) -> None:
    """What it would take before it starts, by suite and in the order in which it runs: from runs that were
    timed, or a guess where nothing is known."""
    from trainwright.compare.reproduce import USUAL
    from trainwright.report.numbers import duration
    places: dict[str, list[Price]] = {}
    for cost, _, group in listed:
        places.setdefault(group[0].place, []).append(cost)
    for place, costs in places.items() if len(listed) > 1 else ():
        how = "" if all(c.timed for c in costs) else ", not timed yet"
        many = f"{len(costs)} comparison{'s' * (len(costs) > 1)}"
        Terminal().print(f"  {place}: {many}, about "
                         f"{duration(sum(c.seconds for c in costs))}{how}", soft_wrap=True)
    guessed = sum(not cost.timed for cost, _, _ in listed)
    how = "from runs that were timed" if not guessed else (
        f"{duration(USUAL)} assumed for each of the {guessed} that were not timed yet")
    claims, papers = sum(len(group) for *_, group in listed), {paper.id for _, paper, _ in listed}
    Terminal().print(f"{claims} claims of {len(papers)} papers in {len(listed)} comparisons: about "
                     f"{duration(sum(cost.seconds for cost, _, _ in listed))}, {how}.", soft_wrap=True)


def _measured(paper: Paper, claims: list[Claim], evidence: Path, jobs: int, store: Path, go_on: bool) -> str:
    """Measure claims that share their runs and say what came out. Where others follow, what went wrong is
    returned instead of raised: they are measured all the same."""
    from trainwright.compare import reproduce
    from trainwright.report import papers as pages
    from trainwright.report.comparison.progress import ComparisonProgress
    from trainwright.storage.store import Store
    watch = ComparisonProgress("")
    try:
        told = reproduce.reproduce(paper, claims, Store(store), evidence, watch, jobs)
    except UserError as error:
        if not go_on:
            raise
        return str(error)
    finally:
        watch.close()
    for one in told:
        if one.claim in claims:
            line = styled("[cyan]{}[/] {}: {}. {}", paper.id, one.claim.says, one.word, pages.sentence(one))
            Terminal().print(line, soft_wrap=True)
    return ""


def suite(name: Annotated[str, typer.Argument(help="A shared suite, such as pretrain.", show_default=False)],
          tune: Annotated[bool, typer.Option(
              "--tune", help="Search for the baseline's settings, and write every trial.")] = False,
          tricks: Annotated[bool, typer.Option(
              "--tricks", help="Put tricks that a weak baseline would lose to against it.")] = False,
          aa: Annotated[bool, typer.Option(
              "--aa", help="Compare the baseline with itself, ten seeds a side: the noise that stands beside "
                           "each verdict.")] = False,
          changes: Changes = None, dry_run: DryRun = False,
          evidence: Annotated[Path, typer.Option(help="Folder for suites/NAME.json.")] = Path("evidence"),
          jobs: Annotated[int, typer.Option(
              min=0, help="Runs at a time, in processes; 0: one for each core, or one on a GPU.")] = 0,
          store: StoreDir = Path("store")) -> None:
    """Measure a suite in which claims are tested: how its baseline is tuned, and how far it lies from
    itself."""
    from trainwright.compare import suite as suites
    from trainwright.compare.execute import at_a_time
    from trainwright.core.recipe import parse_change
    chosen = [part for part, wanted in zip(suites.PARTS, (tune, tricks, aa), strict=True) if wanted]
    suites.find(name)
    if not chosen:
        raise UserError("say what is measured: --tune, --tricks or --aa.")
    given = dict(parse_change(c) for c in changes or ())
    if given and not dry_run and evidence == Path("evidence"):
        raise UserError("--set makes another suite: name another folder with --evidence.")
    for part in chosen:
        _suite_part(name, part, given, dry_run, evidence, jobs or at_a_time(), store)


def _suite_part(name: str, part: str, given: dict[str, Any], dry_run: bool, evidence: Path, jobs: int,
                store: Path) -> None:
    from trainwright.compare import suite as suites
    from trainwright.compare.compare import Comparison
    from trainwright.compare.estimate import estimate
    from trainwright.report import suite_pages
    from trainwright.report.comparison import table
    from trainwright.report.comparison.progress import ComparisonProgress
    from trainwright.storage.store import Store
    if dry_run:
        c = Comparison(suites.spec_of(name, part, given), Store(store), jobs=jobs)
        Terminal().print(table.estimate(estimate(c)))
        return
    watch = ComparisonProgress("")
    try:
        suites.measure(name, part, Store(store), evidence, watch, jobs, given)
    finally:
        watch.close()
    Terminal().print(suite_pages.sentence(name, part, evidence), soft_wrap=True)


def field_map(out: Annotated[Path, typer.Option(help="The page to write.")] = Path("map.html")) -> None:
    """Write the field map: every paper in the taxonomies of eight surveys, with what became of its claims. It
    is one file that needs no network."""
    from trainwright.report import field
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(field.page(), encoding="utf-8")
    Terminal().print(f"wrote {out}", soft_wrap=True)
