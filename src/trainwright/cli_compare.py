"""Commands that answer questions over many runs: compare, smallest, speed-up, fit-law. Heavy imports wait."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

from trainwright.core.errors import UserError
from trainwright.report.terminal import Terminal, styled

if TYPE_CHECKING:
    from trainwright.compare.compare import Comparison
    from trainwright.compare.spec import Size, Spec

StoreDir = Annotated[Path, typer.Option(
    "--store", help="Folder in which artifacts are kept and found again.")]
Changes = Annotated[list[str] | None, typer.Option(
    "--set", metavar="STAGE.KEY=VALUE", show_default=False,
    help="Change a setting: [cyan]adapt.tokens=1e6[/], [cyan]adapt.methods.adamw.lr=3e-4[/], "
         "[cyan]seed=1[/]. May be repeated.")]

Stage = Annotated[str | None, typer.Option(help="The stage that the arms change.", show_default=False)]
Arms = Annotated[list[str] | None, typer.Option(
    "--arm", show_default=False,
    help="An arm: [cyan]NAME: METHOD key=value, METHOD …[/]; [cyan]-METHOD[/] drops one. May be repeated.")]
Budget = Annotated[str | None, typer.Option(
    show_default=False,
    help="What every run may spend: [cyan]tokens=2e6[/], [cyan]flops=1e15[/] or [cyan]seconds=60[/].")]
Seeds = Annotated[int | None, typer.Option(help="Runs of each arm.", show_default="5")]
Metric = Annotated[str | None, typer.Option(help="What decides, such as loss/code.", show_default=False)]
Baseline = Annotated[str | None, typer.Option(
    help="Arm that the others are compared with.", show_default="the first")]
Tune = Annotated[list[str] | None, typer.Option(
    show_default=False,
    help="Tune for every arm: [cyan]lr[/], [cyan]lr=1e-4,1e-3[/] or [cyan]adamw.lr=1e-4..1e-2[/].")]
Trials = Annotated[int | None, typer.Option(help="Tuning trials of each arm.", show_default=False)]
Jobs = Annotated[int, typer.Option(
    min=0, help="Runs at a time, each in a process of its own; 0: one for each core, as far as memory goes, "
                "and one on a GPU or where the budget is in seconds.")]
Engine = Annotated[Literal["native", "ray"], typer.Option(
    help="native, or ray: a Ray cluster whose nodes share the store.")]
AA = Annotated[bool, typer.Option(
    "--aa", help="Compare the baseline with itself, other seeds on the other side: its spread is the noise.")]
EarlyStop = Annotated[bool, typer.Option(
    "--early-stop", help="End hopeless tuning trials early (successive halving), never the runs that count.")]
UntilDecided = Annotated[bool, typer.Option(
    "--until-decided", help="Add seeds until every verdict is decided, by intervals that allow to look.")]
MostSeeds = Annotated[int | None, typer.Option(
    help="Seeds at which [cyan]--until-decided[/] ends.", show_default="20")]
Margin = Annotated[float | None, typer.Option(
    show_default=False, help="The largest difference in the metric that does not matter, for "
                             "[cyan]--until-decided[/].")]
Climb = Annotated[bool, typer.Option(
    "--ladder", help="Repeat it at the sizes of [cyan]compare.ladder[/]: does the difference survive scale?")]
Keep = Annotated[bool, typer.Option("--keep", help="Keep the weights of all runs in the store.")]
DryRun = Annotated[bool, typer.Option(
    "--dry-run", help="Print what would run and what it is estimated to take; then stop.")]
Compared = Annotated[Path, typer.Argument(
    show_default=False,
    help="A comparison in TOML ([cyan]recipes/compare_adapters.toml[/]), or a recipe and the options below.")]


def compare(recipe: Compared, stage: Stage = None, arm: Arms = None, budget: Budget = None,
            seeds: Seeds = None, metric: Metric = None, baseline: Baseline = None, tune: Tune = None,
            trials: Trials = None,
            changes: Changes = None, jobs: Jobs = 0, engine: Engine = "native", aa: AA = False,
            until_decided: UntilDecided = False, most_seeds: MostSeeds = None, margin: Margin = None,
            ladder: Climb = False, early_stop: EarlyStop = False, keep: Keep = False, dry_run: DryRun = False,
            store: StoreDir = Path("store")) -> None:
    """Is X better than Y, for me, at this budget? Arms over paired seeds, the same tuning for each,
    intervals, a verdict.

    An interrupted comparison resumes; with more seeds or another arm, earlier runs are used again.
    """
    from trainwright.compare import spec as specs
    from trainwright.core.files import without_links
    from trainwright.core.recipe import own_code, parse_change
    given = {"stage": stage, "metric": metric, "seeds": seeds, "baseline": baseline, "trials": trials,
             "until_decided": until_decided or None, "most_seeds": most_seeds, "margin": margin,
             "budget": specs.parse_budget(budget) if budget else None,
             "tune": specs.parse_tune(tune) if tune else None}
    spec = specs.load(recipe, {k: v for k, v in given.items() if v is not None},
                      [specs.parse_arm(a) for a in arm or ()],
                      dict(parse_change(c) for c in changes or ()), aa)
    from trainwright.planning import forkserver
    forkserver.begin()                                          # imports beside this process
    from trainwright.compare.compare import Comparison
    from trainwright.report.comparison.progress import ComparisonProgress
    from trainwright.storage.store import Store
    for file in own_code(spec.table, asdict(spec.settings), *map(asdict, spec.arms)):
        Terminal().print(f"compare runs {file}, since the recipe names it", soft_wrap=True)
    make = partial(Comparison, store=Store(store), watch=ComparisonProgress(spec.settings.metric), jobs=jobs,
                   engine=engine, early_stop=early_stop, keep=keep)
    name = recipe.stem + ("-aa" if aa else "-ladder" if ladder else "")
    if ladder:
        _climb(spec, make, name, dry_run)
        return
    c = make(spec)
    _expect(c)
    if not dry_run:
        _answer(c, without_links(c.store.folder("comparisons", name)))


def _expect(c: Comparison) -> None:
    """Show what a comparison is estimated to take."""
    from trainwright.compare.estimate import estimate
    from trainwright.report.comparison import table
    Terminal().print(table.estimate(estimate(c)))


def _answer(c: Comparison, folder: Path) -> None:
    """Carry a comparison out, and show what it found."""
    try:
        result = c.run()
    finally:
        c.watch.close()
    _show(result, folder)


def _show(result: dict[str, Any], folder: Path) -> None:
    """The table of a comparison, and its page."""
    from trainwright.compare.execute import write
    from trainwright.report.comparison import page
    from trainwright.report.comparison.table import ComparisonTable
    write(folder / "result.json", result)
    Terminal().print(ComparisonTable(result))
    Terminal().print(f"page: {page.write(folder, result)}", soft_wrap=True)


def _climb(spec: Spec, make: Callable[[Spec], Comparison], name: str, dry_run: bool) -> None:
    """Carry a comparison out at each of its sizes, and show what becomes of the effect."""
    from trainwright.compare import ladder
    from trainwright.compare.execute import write
    from trainwright.core.files import without_links
    from trainwright.report.comparison import ladder as page
    listed = ladder.made(spec, make)
    for size, c in listed:
        Terminal().print(styled("[bold]{}[/]", size.name))
        _expect(c)
    if dry_run:
        return
    folder = without_links(listed[0][1].store.folder("comparisons", name))
    places = {size.name: folder / f"size-{i + 1}" for i, (size, _) in enumerate(listed)}

    def each(size: Size, result: dict[str, Any]) -> None:
        listed[0][1].watch.close()
        _show(result, places[size.name])

    try:
        result = ladder.run(spec, listed, each)
    finally:
        listed[0][1].watch.close()
    write(folder / "result.json", result)
    for line in page.sentences(result):
        Terminal().print(Text(line), soft_wrap=True)
    Terminal().print(f"page: {page.write(folder, result)}", soft_wrap=True)


def smallest(result: Annotated[Path, typer.Argument(
                 help="The [cyan]result.json[/] of a comparison.", show_default=False)],
             setting: Annotated[str, typer.Argument(
                 help="METHOD.SETTING, a number that differs between the arms.", show_default=False)],
             share: Annotated[float, typer.Option(help="Share of the baseline's score to reach.")] = 0.9,
             ) -> None:
    """Which arm is the smallest that is nearly as good as the baseline? With
    [cyan]intrinsic_dimension.dimension[/] and a share of 0.9 the answer is the intrinsic dimension."""
    from trainwright.compare.smallest import smallest as search
    from trainwright.core.files import expected, read_json
    if not result.is_file():
        raise UserError(f"there is no file {result}: name the result.json of a comparison.")
    with expected(result):
        found = search(read_json(result), setting, share)
    for number, score in found.scores.items():
        Terminal().print(f"{number:>12,g}  {score:.4g}{'' if score < found.threshold else '  reaches it'}")
    *some, last = (f"{n:g}" for n in found.scores)
    tried = f"{', '.join(some)} and {last}" if some else last
    answer = f"none of {tried} reaches"
    if found.number is not None:
        answer = f"{found.number:g} is the smallest of {tried} that reaches"
    where = "" if found.number is None or found.below is None else (
        f"; the true one lies between {found.below:g} and {found.number:g}")
    seeds = ", ".join("none" if n is None else f"{n:g}" for n in found.by_seed)
    Terminal().print(f"{setting}: {answer} {share * 100:g} % of the baseline's {found.baseline:.4g}{where}. "
                     f"By seed: {seeds}.", soft_wrap=True)


def speed_up(results: Annotated[list[Path], typer.Argument(
                 help="The [cyan]result.json[/] of one comparison at several budgets of tokens.",
                 show_default=False)]) -> None:
    """How many times fewer tokens does each arm need than the baseline for the same loss? One size of model,
    a comparison at each of two budgets or more; read off where the baseline ended at each."""
    from trainwright.compare.speed_up import of_results, sentence
    from trainwright.core.files import expected, read_json
    read = []
    for file in results:
        if not file.is_file():
            raise UserError(f"there is no file {file}: name the result.json of a comparison.")
        with expected(file):
            read.append(read_json(file))
    with expected(results[0]):
        found = of_results(read)
    for one in found:
        Terminal().print(sentence(one), soft_wrap=True)


def fit_law(law: Annotated[str, typer.Argument(
                help="A law, such as step_law, or a file of one.", show_default=False)],
            rows: Annotated[Path | None, typer.Option(
                help="Runs as .jsonl, .csv or .parquet; default: the store's.")] = None,
            stage: Annotated[str | None, typer.Option(help="Of the store only stages of this name.")] = None,
            loss: Annotated[str | None, typer.Option(
                help="Number of their evaluation to take as the loss, such as loss/code.",
                show_default="the mean over domains")] = None,
            parameters: Annotated[float | None, typer.Option(
                help="Predict for so many (without embeddings) …")] = None,
            tokens: Annotated[float | None, typer.Option(help="… and so many tokens of training.")] = None,
            changes: Annotated[list[str] | None, typer.Option(
                "--set", metavar="KEY=VALUE", show_default=False,
                help="A setting of the law, such as [cyan]near=0.01[/]. May be repeated.")] = None,
            store: StoreDir = Path("store")) -> None:
    """Fit a law on finished runs: its constants with their intervals, its error on runs that the fit had
    not seen, what it predicts, and the line for a recipe."""
    from trainwright.core.recipe import parse_change
    from trainwright.report import fitted
    settings = {"use": law, **dict(parse_change(c) for c in changes or ())}
    known = {"parameters": parameters, "tokens": tokens}
    Terminal().print(fitted.fit(settings, rows, store, stage, loss, known), soft_wrap=True)
