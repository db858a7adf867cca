"""Commands that answer questions over many runs: compare, bench, fit-law. Heavy imports wait."""
from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from trainwright.core.errors import UserError
from trainwright.report.terminal import Terminal, styled

if TYPE_CHECKING:
    from trainwright.compare.compare import Comparison

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
Jobs = Annotated[int, typer.Option(help="Runs at a time, each in a process of its own.", min=1)]
Engine = Annotated[Literal["native", "ray"], typer.Option(
    help="native, or ray: a Ray cluster whose nodes share the store.")]
AA = Annotated[bool, typer.Option(
    "--aa", help="Compare the baseline with itself, other seeds on the other side: its spread is the noise.")]
EarlyStop = Annotated[bool, typer.Option(
    "--early-stop", help="End hopeless tuning trials early (successive halving), never the runs that count.")]
Keep = Annotated[bool, typer.Option("--keep", help="Keep the weights of all runs in the store.")]
DryRun = Annotated[bool, typer.Option(
    "--dry-run", help="Print what would run and what it is estimated to take; then stop.")]
Compared = Annotated[Path, typer.Argument(
    show_default=False,
    help="A comparison in TOML ([cyan]recipes/compare_adapters.toml[/]), or a recipe and the options below.")]


def compare(recipe: Compared, stage: Stage = None, arm: Arms = None, budget: Budget = None,
            seeds: Seeds = None, metric: Metric = None, baseline: Baseline = None, tune: Tune = None,
            trials: Trials = None,
            changes: Changes = None, jobs: Jobs = 1, engine: Engine = "native", aa: AA = False,
            early_stop: EarlyStop = False, keep: Keep = False, dry_run: DryRun = False,
            store: StoreDir = Path("store")) -> None:
    """Is X better than Y, for me, at this budget? Arms over paired seeds, the same tuning for each,
    intervals, a verdict.

    An interrupted comparison resumes; with more seeds or another arm, earlier runs are used again.
    """
    from trainwright.compare import spec as specs
    from trainwright.core.files import without_links
    from trainwright.core.recipe import own_code, parse_change
    given = {"stage": stage, "metric": metric, "seeds": seeds, "baseline": baseline, "trials": trials,
             "budget": specs.parse_budget(budget) if budget else None,
             "tune": specs.parse_tune(tune) if tune else None}
    spec = specs.load(recipe, {k: v for k, v in given.items() if v is not None},
                      [specs.parse_arm(a) for a in arm or ()],
                      dict(parse_change(c) for c in changes or ()), aa)
    from trainwright.compare.compare import Comparison
    from trainwright.compare.estimate import estimate
    from trainwright.report.comparison import table
    from trainwright.report.comparison.progress import ComparisonProgress
    from trainwright.storage.store import Store
    progress = ComparisonProgress(spec.settings.metric)
    for file in own_code(spec.table, *map(asdict, (spec.settings, *spec.arms))):
        Terminal().print(f"compare runs {file}, since the recipe names it", soft_wrap=True)
    c = Comparison(spec, Store(store), progress, jobs, engine, early_stop, keep)
    Terminal().print(table.estimate(estimate(c)))
    if not dry_run:
        _answer(c, without_links(c.store.folder("comparisons", recipe.stem + ("-aa" if aa else ""))))


def _answer(c: Comparison, folder: Path) -> None:
    """Carry a comparison out, and show what it found."""
    from trainwright.compare.execute import write
    from trainwright.report.comparison import page
    from trainwright.report.comparison.table import ComparisonTable
    try:
        result = c.run()
    finally:
        c.watch.close()
    write(folder / "result.json", result)
    Terminal().print(ComparisonTable(result))
    Terminal().print(f"page: {page.write(folder, result)}", soft_wrap=True)


def bench(method: Annotated[list[str] | None, typer.Argument(
              help="Methods whose paper's claim is put to the test.", show_default=False)] = None,
          every: Annotated[bool, typer.Option("--all", help="Every method that states a claim.")] = False,
          evidence: Annotated[Path, typer.Option(help="Folder for METHOD.json.")] = Path("evidence"),
          jobs: Annotated[int, typer.Option(
              min=0, help="Runs at a time, in processes; 0: one for each core, or one on a GPU.")] = 0,
          store: StoreDir = Path("store")) -> None:
    """Measure a method against its baseline in a shared suite, and write the result beside its paper's
    claim."""
    from trainwright.compare import bench as benches
    from trainwright.report import cards
    from trainwright.report.comparison.progress import ComparisonProgress
    from trainwright.storage.store import Store
    if bool(method) == every:
        raise UserError("name the methods to measure, or say --all.")
    for name in benches.claimed() if every else method or ():
        cards.known(name)
        watch = ComparisonProgress("")
        try:
            found = benches.run(name, Store(store), evidence, watch, jobs or benches.at_a_time())
        finally:
            watch.close()
        Terminal().print(styled("[cyan]{}[/] {}", name, cards.evidence_sentence(found)), soft_wrap=True)


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
