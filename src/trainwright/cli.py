"""The command line. Nothing here knows how anything is done; heavy imports wait until a command needs them."""
from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from trainwright import cli_compare
from trainwright.cli_compare import Changes, StoreDir
from trainwright.core.errors import UserError, located

if TYPE_CHECKING:
    from trainwright.core.method import Decode
    from trainwright.core.recipe import Recipe
    from trainwright.core.store import Store

app = typer.Typer(name="trainwright", no_args_is_help=True, rich_markup_mode="rich", add_completion=False,
                  pretty_exceptions_enable=False,
                  help="One recipe describes a model's whole training life: data, pretraining, adaptation, alignment, "
                       "compression, merging, evaluation.")
RANK_0_FIRST = 15.0
"""Seconds that another rank waits before it tells of a mistake: rank 0 may have a report to write."""
stores = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Artifacts that runs have made.")
app.add_typer(stores, name="store")

RecipeFile = Annotated[Path, typer.Argument(help="A recipe in TOML, such as recipes/quickstart.toml.", show_default=False)]

@app.command()
def run(recipe: RecipeFile, changes: Changes = None, store: StoreDir = Path("store")) -> None:
    """Run a recipe. Stages that the store has are not made again; an interrupted one goes on where it was.

    On several GPUs or processes: [cyan]torchrun --nproc-per-node 2 -m trainwright run RECIPE[/].
    """
    loaded = _load(recipe, changes)                        # before what takes seconds to import
    from trainwright.core import sharding
    from trainwright.core.listener import Listener, Listeners
    from trainwright.core.store import Store
    from trainwright.life.run import run as run_recipe
    from trainwright.report import trackers
    from trainwright.report.progress import Progress
    sharding.start()
    main, progress, made_in = sharding.main(), Progress(), Store(store)
    with located(str(recipe)):
        hear = Listener()
        if main:
            hear = Listeners(progress, *(trackers.make(t, store / "trackers", recipe.stem) for t in loaded.trackers))
    try:
        run_recipe(loaded, made_in, hear)
    except KeyboardInterrupt as stopped:                   # the command line would swallow what it says
        hear.close()
        if main:
            why = escape(str(stopped) or "interrupted; run the same command to go on")
            Console(stderr=True).print(f"[yellow]{why}[/]", soft_wrap=True)
        raise typer.Exit(130) from None
    finally:
        hear.close()
        if not isinstance(sys.exception(), UserError):     # told first: the others take a connection that closes for an error
            sharding.stop()
        if main and progress.states:
            _report(loaded, made_in, progress.states)


def _report(recipe: Recipe, store: Store, states: dict[str, dict[str, str]]) -> None:
    """The tables and the page of what has run, a stage that failed included."""
    from trainwright.life.jobs import artifacts
    from trainwright.planning.plan import plan as make_plan
    from trainwright.report import page
    from trainwright.report.progress import evaluation_table
    planned = make_plan(recipe, store, estimate=False)
    made = artifacts(store, [s.job for s in planned.stages])
    manifests: list[dict[str, Any]] = [(made[name].manifest if name in made else {"stage": name}) | state
                                       for name, state in states.items()]
    for m in manifests:
        if m["kind"] == "evaluate" and "figures" in m:
            Console().print(evaluation_table(m["figures"]))
    folders = [made[name].path if name in made else Path() for name in states]
    out = page.write(store.root / "reports" / recipe.file.stem, recipe.text, recipe.title, manifests, folders, str(planned))
    Console().print(f"report: {out}", soft_wrap=True)


@app.command()
def plan(recipe: RecipeFile, changes: Changes = None, store: StoreDir = Path("store"),
         fit: Annotated[str | None, typer.Option(metavar="MEMORY", show_default=False,
                        help="Propose settings with which each training stage fits into so much memory, such as "
                             "[cyan]24GiB[/].")] = None) -> None:
    """Show what a recipe will do, without doing it: who acts in which place and in what order, what it owns, parameters,
    tokens and FLOPs, and the peak memory and time to expect. Every mistake that can be found before running is found here."""
    loaded = _load(recipe, changes)
    from trainwright.core.store import Store
    from trainwright.planning.memory import parse_bytes
    from trainwright.planning.plan import plan as make_plan
    from trainwright.report import planned
    limit = parse_bytes(fit) if fit is not None else None
    Console().print(planned.render(make_plan(loaded, Store(store), estimate=limit is None)))
    if fit is not None and limit is not None:
        from trainwright.planning.fit import propose
        Console().print(planned.proposals(propose(loaded, Store(store), limit), fit.strip()), soft_wrap=True)


app.command()(cli_compare.compare)
app.command()(cli_compare.bench)
app.command("fit-law")(cli_compare.fit_law)


@app.command("list")
def list_methods(kind: Annotated[str | None, typer.Option(help="Only this kind, such as Objective or Update.")] = None,
                 folder: Annotated[str | None, typer.Option(help="Only this place in a life, such as data or optim.")] = None,
                 search: Annotated[str | None, typer.Option(help="Only methods whose card has all of these words.")] = None,
                 ) -> None:
    """List the methods: name, kind, and what each does."""
    from trainwright.core import registry
    from trainwright.report import cards
    console = Console()
    console.print(cards.listing(list(registry.cards().values()), kind, folder, search, max(40, min(console.width, 110))))


@app.command()
def show(method: Annotated[str, typer.Argument(help="A method's name, or an artifact's in the store.", show_default=False)],
         store: StoreDir = Path("store")) -> None:
    """Show a method's card (what it does, its paper, a table of its settings, the evidence), or what an artifact came from."""
    from trainwright.core import card, registry
    from trainwright.core.store import Store
    from trainwright.report import cards
    Console().print(cards.card(card.read(registry.locate(method, Path(), "show"), Path(method).stem, ""))
                    if method.endswith(".py") else cards.shown(method, Store(store)))


@app.command()
def new(method: Annotated[str, typer.Argument(help="The method's name in snake_case; it becomes the file's name.",
                                              show_default=False)],
        kind: Annotated[str, typer.Option("--kind", "-k", help="Curate, Data, Surgery, Objective, Weigh, Update, Optimizer, "
                                                               "Controller, Arithmetic, Decode, Evaluator, Task or "
                                                               "ScalingLaw.")],
        folder: Annotated[str | None, typer.Option(help="Place in a life, such as finetune; default: the usual one of the "
                                                        "kind.")] = None,
        root: Annotated[Path, typer.Option(help="Root of a checkout of Trainwright.")] = Path()) -> None:
    """Write the three files of a new method: the method, its test, and its evidence."""
    from trainwright.check import scaffold
    for file in scaffold.write(method, kind, folder, root):
        Console().print(f"wrote {file}", soft_wrap=True)


@app.command()
def check(method: Annotated[str | None, typer.Argument(help="A method's name, or a file such as ./mine.py; default: all.",
                                                       show_default=False)] = None) -> None:
    """Run the conformance battery: settings round-trip, exact resume, micro-batches and ranks that do not bend the loss,
    neutral state …"""
    from trainwright.check import battery
    console, done, said = Console(), [], set()
    for result in battery.check_all([method] if method else None):
        done.append(result)
        why = "as above" if result.why and (result.method, result.why) in said else result.why
        said.add((result.method, result.why))
        color = {"failed": "red", "passed": "green"}.get(result.status, "yellow")
        word = result.status.upper() if result.status == "failed" else result.status
        console.print(f"[{color}]{word}[/] {escape(result.method):<22} {result.law}" + (f": {escape(why)}" if why else ""))
    console.print(battery.summary(done))
    if not all(result.ok for result in done):
        raise typer.Exit(1)


@app.command()
def export(stage: Annotated[str, typer.Argument(help="A stage's name, or an artifact folder's.", show_default=False)],
           folder: Annotated[Path, typer.Argument(help="Where to write the Hugging Face checkpoint.", show_default=False)],
           dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
           store: StoreDir = Path("store")) -> None:
    """Write a stage's model as a Hugging Face checkpoint."""
    from trainwright import families
    from trainwright.core.store import Store
    families.export(Store(store).named(stage).path, folder, dtype)
    Console().print(f"wrote {folder}", soft_wrap=True)


@app.command()
def generate(stage: Annotated[str, typer.Argument(help="A stage's name, an artifact folder's, or a checkpoint's path.",
                                                  show_default=False)],
             prompt: Annotated[str, typer.Option("--prompt", "-p", help="Text to go on from.")],
             tokens: Annotated[int, typer.Option(help="How many tokens to write.")] = 100,
             temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.8,
             chat: Annotated[bool, typer.Option(help="Put the prompt through the chat template as a user's message.")] = False,
             seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
             decode: Annotated[list[str] | None, typer.Option(
                 metavar="METHOD", show_default=False,
                 help="Shape what is drawn: [cyan]nucleus p=0.9[/], [cyan]min_p p=0.1[/]. May be repeated; "
                      "without it the model samples as its generation config says.")] = None,
             store: StoreDir = Path("store")) -> None:
    """Let a stage's model go on from a prompt."""
    from trainwright.core.store import Store
    from trainwright.lm import generation
    methods = _decoding(decode or ())
    folder = Path(stage) if (Path(stage) / "config.json").is_file() else Store(store).named(stage).path
    said = generation.generate(folder, prompt, tokens, temperature, chat, seed, methods)
    Console().print(escape(said), soft_wrap=True)


@stores.command("ls")
def store_list(store: StoreDir = Path("store")) -> None:
    """List artifacts: stage, kind, size, seconds, when."""
    from trainwright.core.store import Store
    from trainwright.report import cards
    Console().print(cards.store_table(Store(store)))


@stores.command("show")
def store_show(artifact: Annotated[str, typer.Argument(help="A stage's name, or an artifact folder's.", show_default=False)],
               store: StoreDir = Path("store")) -> None:
    """Show what an artifact came from: settings, inputs, hashes, versions, git commit, seconds, figures."""
    from trainwright.core.store import Store
    Console().print_json(data=Store(store).named(artifact).manifest)


@stores.command("rm")
def store_remove(artifact: Annotated[str, typer.Argument(help="A stage's name, or an artifact folder's.", show_default=False)],
                 store: StoreDir = Path("store"),
                 force: Annotated[bool, typer.Option(help="Even if other artifacts were made from it.")] = False) -> None:
    """Remove an artifact. One that others were made from needs --force."""
    from trainwright.core.store import Store
    path = Store(store).remove(artifact, force)
    Console().print(f"removed {path}", soft_wrap=True)


def _load(recipe: Path, changes: list[str] | None) -> Recipe:
    from trainwright.core.recipe import load, parse_change
    return load(recipe, dict(parse_change(c) for c in changes or ()))


def _decoding(texts: Sequence[str]) -> list[Decode]:
    """The methods that ``--decode`` names."""
    from trainwright.compare.spec import parse_methods
    from trainwright.core import registry
    from trainwright.core.method import Decode
    tables = [table for text in texts for table in parse_methods(text, "--decode")]
    made = [registry.create(table, Path(), "--decode") for table in tables]
    for method in made:
        if not isinstance(method, Decode):
            known = ", ".join(card.name for card in registry.cards().values() if card.is_a("Decode"))
            raise UserError(f"--decode: {method.name} does not shape what is drawn; methods that do are {known}.")
    return made  # type: ignore[return-value]


def _after_rank_0() -> None:
    """Of several processes rank 0 speaks first. Where it has failed too, torchrun ends this one while it waits, so that a mistake
    is told once; one that this rank alone has found is told after the wait, with its connections still open."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(RANK_0_FIRST)


def main() -> None:
    """Entry point: a user's mistake is one sentence on stderr and exit code 2, never a traceback."""
    err = Console(stderr=True)
    try:
        app()
    except UserError as error:
        _after_rank_0()
        err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        if "torch" in sys.modules:
            from trainwright.core import sharding
            sharding.stop()
        sys.exit(2)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            err.print(f"[bold red]error:[/] {escape(repr(error.filename))} is too long for the name of a file.", soft_wrap=True)
            sys.exit(2)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        what = f"{error.strerror} ({error.filename})" if error.filename else str(error.strerror)
        err.print(f"[bold red]error:[/] {escape(what)}: make room or choose another --store; what was saved before is kept.",
                  soft_wrap=True)
        sys.exit(2)
