"""The command line: what each command takes and prints. Heavy imports wait until a command needs them."""
from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainwright import cli_audit, cli_compare, cli_ends, cli_papers, cli_run
from trainwright.cli_compare import Changes, StoreDir
from trainwright.core import ending
from trainwright.core.card import kinds
from trainwright.core.errors import UserError, located
from trainwright.report.terminal import Terminal, styled

if TYPE_CHECKING:
    from trainwright.core.method import Decode
    from trainwright.core.recipe import Recipe

KINDS = ", ".join(kinds())
"""The kinds of method, for help."""
app = typer.Typer(name="trainwright", cls=cli_ends.Commands, no_args_is_help=True, rich_markup_mode="rich",
                  pretty_exceptions_enable=False,
                  help="One recipe describes a model's whole training life: data, pretraining, adaptation, "
                       "alignment, compression, merging, evaluation.")
stores = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Artifacts that runs have made.")
app.add_typer(stores, name="store")



def _version(asked: bool) -> None:
    if asked:
        from trainwright.storage.versions import versions
        typer.echo(f"trainwright {versions()['trainwright']}")
        raise typer.Exit


@app.callback()
def options(version: Annotated[bool, typer.Option(
                "--version", is_eager=True, callback=_version,
                help="Print the version and exit.")] = False) -> None:
    """One recipe describes a model's whole training life: data, pretraining, adaptation, alignment,
    compression, merging, evaluation."""


RecipeFile = Annotated[Path, typer.Argument(
    help="A recipe in TOML, such as recipes/quickstart.toml.", show_default=False)]
ArtifactName = Annotated[str, typer.Argument(
    help="A stage's name, or an artifact folder's.", show_default=False)]
MethodKind = Annotated[str, typer.Option("--kind", "-k", help=f"One of {KINDS}.")]

@app.command()
def run(recipe: RecipeFile, changes: Changes = None, store: StoreDir = Path("store"),
        live: Annotated[bool, typer.Option(
            "--live", help="Keep a page of the run while it runs: a file that loads itself again.")] = False,
        ) -> None:
    """Run a recipe. Stages that the store has do not run again; an interrupted one goes on where it was.

    On several GPUs or processes: [cyan]torchrun --nproc-per-node 2 -m trainwright run RECIPE[/].
    """
    loaded = _load(recipe, changes)                        # before what takes seconds to import
    from trainwright.core import sharding
    from trainwright.life.listener import Listener, Listeners
    from trainwright.life.run import run as run_recipe
    from trainwright.report import trackers
    from trainwright.report.progress import Progress
    from trainwright.storage.store import Store
    sharding.start()
    main, progress, made_in = sharding.main(), Progress(), Store(store)
    with located(str(recipe)):
        hear = Listener()
        if main:
            told = trackers.life(loaded) if loaded.trackers else None
            hear = Listeners(progress, *(trackers.make(t, made_in.folder("trackers"), told)
                                         for t in loaded.trackers if told is not None),
                             *([cli_run.live(loaded, made_in)] if live else []))
    try:
        run_recipe(loaded, made_in, hear)
    except KeyboardInterrupt as stopped:                   # said before the report
        hear.close()
        cli_ends.interrupted(stopped)
        raise typer.Exit(ending.code(stopped)) from None
    finally:
        hear.close()
        if not isinstance(sys.exception(), UserError):     # reported first: to the other ranks a closed
            sharding.stop()                                # connection is an error
        if main and progress.states:
            with suppress(Exception) if sys.exception() else nullcontext():       # which is what to report
                cli_run.report(loaded, made_in, progress)


@app.command()
def plan(recipe: RecipeFile, changes: Changes = None, store: StoreDir = Path("store"),
         fit: Annotated[str | None, typer.Option(
             metavar="MEMORY", show_default=False,
             help="Propose settings with which each training stage fits into so much memory, such as "
                  "[cyan]24GiB[/].")] = None,
         ranks: Annotated[int, typer.Option(
             metavar="N", min=0, max=65536, show_default=False,
             help="Predict the memory of each of N ranks of another machine, without allocating it.")] = 0,
         memory: Annotated[str | None, typer.Option(
             metavar="MEMORY", show_default=False,
             help="What each of the ranks has, such as [cyan]80GiB[/]; more is refused.")] = None) -> None:
    """Show what a recipe will do, without doing it: who acts in which place and in what order, what it owns,
    parameters, tokens and FLOPs, and the peak memory and time to expect. Every mistake that can be found
    before running is found here."""
    loaded = _load(recipe, changes)
    from trainwright.planning import forkserver
    forkserver.begin()                                          # imports beside this process
    from trainwright.core.recipe import own_code
    from trainwright.core.stage import plain
    from trainwright.planning.memory import parse_bytes
    from trainwright.planning.plan import Machine
    from trainwright.planning.plan import plan as make_plan
    from trainwright.report import planned
    from trainwright.storage.store import Store
    limit = parse_bytes(fit) if fit is not None else None
    for file in own_code(*map(plain, loaded.stages)):
        Terminal().print(f"plan runs {file}, since the recipe names it", soft_wrap=True)
    machine = Machine(max(ranks, 1), parse_bytes(memory) if memory else inf) if ranks or memory else None
    Terminal().print(planned.render(make_plan(loaded, Store(store), limit is None, machine=machine)))
    if fit is not None and limit is not None:
        from trainwright.planning.fit import propose
        found = propose(loaded, Store(store), limit, ranks)
        Terminal().print(planned.proposals(found, fit.strip()), soft_wrap=True)


@app.command()
def init(template: Annotated[str | None, typer.Argument(
             show_default=False, help="What to do; without it, the templates are listed.")] = None,
         data: Annotated[str | None, typer.Option(
             show_default=False, help="A file, a folder, or a data set as hf://OWNER/NAME.")] = None,
         model: Annotated[str | None, typer.Option(
             show_default=False,
             help="A checkpoint's folder, package://NAME, or hf://OWNER/NAME.")] = None,
         columns: Annotated[str | None, typer.Option(
             show_default=False,
             help="Columns of other names: prompt=question,answer=reply.")] = None,
         out: Annotated[Path | None, typer.Option(
             show_default=False, help="The recipe to write; default: the template's name.")] = None,
         store: StoreDir = Path("store")) -> None:
    """Write a commented recipe for a model and data of yours, which it looks at first. It runs as it is."""
    from trainwright.planning.templates import templates
    console = Terminal()
    if template is None or data is None:
        for name, what in templates().items():
            console.print(styled("[bold]{}[/] {}", f"{name:<9}", what), soft_wrap=True)
        console.print("such as: trainwright init chat --data chats.jsonl --model hf://OWNER/NAME")
        if template is not None:
            raise UserError(f"init {template} needs data: --data FILE.")
        return
    from trainwright.planning import start
    from trainwright.storage.store import Store
    file = out or Path(f"{template}.toml")
    for line in start.write(template, model, data, file, Store(store), columns):
        console.print(line, soft_wrap=True)
    console.print(f"wrote {file}: look at it, then", soft_wrap=True)
    how = "compare" if template == "compare" else "run"
    console.print(f"  trainwright plan {file}\n  trainwright {how} {file}", soft_wrap=True)


app.command()(cli_compare.compare)
app.command()(cli_compare.smallest)
app.command("speed-up")(cli_compare.speed_up)
app.command()(cli_papers.papers)
app.command()(cli_papers.reproduce)
app.command()(cli_papers.suite)
app.command("map")(cli_papers.field_map)
app.command()(cli_audit.audit)
app.command("fit-law")(cli_compare.fit_law)


@app.command()
def schema() -> None:
    """Print a JSON schema of recipes, from which an editor completes and checks them."""
    import json

    from trainwright.planning import schema as made
    typer.echo(json.dumps(made.schema(), ensure_ascii=False))


@app.command("list")
def list_methods(kind: Annotated[str | None, typer.Option(
                     help=f"Only one kind: {KINDS}.")] = None,
                 folder: Annotated[str | None, typer.Option(
                     help="Only this place in a life, such as data or optim.")] = None,
                 search: Annotated[str | None, typer.Option(
                     help="Only methods whose card has all of these words.")] = None) -> None:
    """List the methods: name, kind, and what each does."""
    from trainwright.core import registry
    from trainwright.report import cards
    console = Terminal()
    width = max(40, min(console.width, 110))
    console.print(cards.listing(list(registry.cards().values()), kind, folder, search, width))


@app.command()
def show(method: Annotated[str, typer.Argument(
             help="A method's name, a paper's id, or an artifact's in the store.", show_default=False)],
         dropped: Annotated[bool, typer.Option(
             "--dropped", help="Of a corpus: some of the documents that it dropped, each with the reason and "
                               "beside the document that it was dropped for.")] = False,
         by: Annotated[str | None, typer.Option(
             metavar="METHOD", show_default=False, help="Only those that this method dropped.")] = None,
         most: Annotated[int, typer.Option(min=1, help="Examples of each method.")] = 5,
         store: StoreDir = Path("store")) -> None:
    """Show a method's card (what it does, settings, evidence), a paper's (its claims and what became of
    them), or what an artifact came from; [cyan]show CORPUS --dropped[/] shows what was left out."""
    from trainwright.core import card, registry
    from trainwright.report import cards
    from trainwright.storage.store import Store
    if dropped or by is not None:
        from trainwright.report import left_out
        Terminal().print(left_out.shown(Store(store).named(method), by, most))
        return
    Terminal().print(cards.card(card.read(registry.locate(method, Path(), "show"), Path(method).stem, ""))
                    if method.endswith(".py") else cards.shown(method, Store(store)))


@app.command()
def new(method: Annotated[str, typer.Argument(
            help="The method's name in snake_case; it becomes the file's name.", show_default=False)],
        kind: MethodKind,
        folder: Annotated[str | None, typer.Option(
            help="Place in a life, such as finetune; default: the usual one of the kind.")] = None,
        root: Annotated[Path, typer.Option(help="Root of a checkout of Trainwright.")] = Path()) -> None:
    """Write the three files of a new method: the method, its test, and its paper with the claims."""
    from trainwright.check import scaffold
    for file in scaffold.write(method, kind, folder, root):
        Terminal().print(f"wrote {file}", soft_wrap=True)


@app.command()
def check(method: Annotated[str | None, typer.Argument(
              show_default=False,
              help="A method's name, or a file such as ./mine.py; default: all.")] = None) -> None:
    """Run the conformance battery: settings round-trip, exact resume, a loss that depends on neither
    micro-batches nor ranks, neutral state …"""
    from trainwright.check import battery
    console, done, said = Terminal(), [], set()
    for result in battery.check_all([method] if method else None):
        done.append(result)
        why = "as above" if result.why and (result.method, result.why) in said else result.why
        said.add((result.method, result.why))
        color = {"failed": "red", "passed": "green"}.get(result.status, "yellow")
        word = result.status.upper() if result.status == "failed" else result.status
        law = result.law + (f": {why}" if why else "")
        console.print(styled(f"[{color}]{word}[/] {{}} {{}}", f"{result.method:<22}", law))
    console.print(battery.summary(done))
    if not all(result.ok for result in done):
        raise typer.Exit(1)


@app.command()
def export(stage: ArtifactName,
           folder: Annotated[Path, typer.Argument(
               help="The folder to write.", show_default=False)],
           dtype: Annotated[str, typer.Option(
               show_default=False,
               help="float32 (default), bfloat16 or float16; for GGUF Q8_0 (default), Q4_0 or F16.")] = "",
           form: Annotated[str, typer.Option(
               "--format", help="[cyan]checkpoint[/], or [cyan]gguf[/] for llama.cpp.")] = "checkpoint",
           to: Annotated[str | None, typer.Option(
               show_default=False,
               help="Also hand it on: [cyan]hub:OWNER/NAME[/] makes a private repository of the Hugging Face "
                    "Hub, with the account that huggingface_hub is logged in to.")] = None,
           store: StoreDir = Path("store")) -> None:
    """Write a stage's model as a Hugging Face checkpoint or a GGUF file, with a card of its past."""
    from trainwright import families
    from trainwright.core.files import write_text
    from trainwright.families import hub
    from trainwright.report.model_card import model_card
    from trainwright.storage.store import Store
    name = hub.hub_name(to) if to is not None else ""
    kept = Store(store)
    artifact = kept.named(stage)
    families.export(kept.opened(artifact), folder, dtype, form)
    write_text(folder / "README.md", model_card(artifact, kept))
    Terminal().print(f"wrote {folder}", soft_wrap=True)
    if name:
        Terminal().print(f"uploaded to {hub.upload(folder, name)}", soft_wrap=True)


@app.command()
def generate(stage: Annotated[str, typer.Argument(
                 help="A stage's name, an artifact folder's, or a checkpoint's path.", show_default=False)],
             prompt: Annotated[str, typer.Option("--prompt", "-p", help="Text to continue.")],
             tokens: Annotated[int, typer.Option(help="How many tokens to write.")] = 100,
             temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.8,
             chat: Annotated[bool, typer.Option(
                 help="Put the prompt through the chat template as a user's message.")] = False,
             seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
             decode: Annotated[list[str] | None, typer.Option(
                 metavar="METHOD", show_default=False,
                 help="Shape what is drawn: [cyan]nucleus p=0.9[/], [cyan]min_p p=0.1[/]. May be repeated; "
                      "without it the model samples as its generation config says.")] = None,
             store: StoreDir = Path("store")) -> None:
    """Have a stage's model continue a prompt."""
    from trainwright.lm import generation
    from trainwright.storage.store import Store
    methods = _decoding(decode or ())
    kept, folder = Store(store), Path(stage)
    if not (folder / "config.json").is_file():
        folder = kept.opened(kept.named(stage))
    said = generation.generate(folder, prompt, tokens, temperature, chat, seed, methods)
    Terminal().print(said, soft_wrap=True)


@stores.command("ls")
def store_list(store: StoreDir = Path("store")) -> None:
    """List artifacts: stage, kind, size, seconds, when."""
    from trainwright.report import cards
    from trainwright.storage.store import Store
    Terminal().print(cards.store_table(Store(store)))


@stores.command("show")
def store_show(artifact: ArtifactName, store: StoreDir = Path("store")) -> None:
    """Show what an artifact came from: settings, inputs, hashes, versions, git commit, seconds, figures."""
    from trainwright.storage.store import Store
    Terminal().print_json(data=Store(store).named(artifact).manifest)


@stores.command("rm")
def store_remove(artifact: ArtifactName, store: StoreDir = Path("store"),
                 force: Annotated[bool, typer.Option(
                     help="Even if other artifacts were made from it.")] = False) -> None:
    """Remove an artifact. One that others were made from needs --force."""
    from trainwright.storage.store import Store
    path = Store(store).remove(artifact, force)
    Terminal().print(f"removed {path}", soft_wrap=True)


@stores.command("verify")
def store_verify(artifact: Annotated[str | None, typer.Argument(
                     show_default=False,
                     help="A stage's name, or an artifact folder's; default: all, and the caches.")] = None,
                 store: StoreDir = Path("store")) -> None:
    """Look at every file of the store: whether each is as it was written. Ends with 2 where one is not."""
    from trainwright.storage.store import Store
    good, bad = 0, 0
    for name, problem in Store(store).verify(artifact):
        good, bad = good + (not problem), bad + bool(problem)
        line = styled("[red]{}[/]", problem) if problem else styled("{}: as it was written", name)
        Terminal().print(line, soft_wrap=True)
    Terminal().print(f"{good} as written, {bad} not")
    if bad:
        raise typer.Exit(2)


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
            raise UserError(f"--decode: {method.name} does not shape what is drawn; methods that do are "
                            f"{known}.")
    return made  # type: ignore[return-value]


def main() -> None:
    """Entry point: a user's mistake is one sentence on stderr and exit code 2, never a traceback."""
    cli_ends.carry_out(app)
