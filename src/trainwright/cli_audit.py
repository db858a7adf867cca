"""The command audit. Heavy imports wait."""
from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trainwright.cli_compare import StoreDir
from trainwright.report.terminal import Terminal, styled


def audit(model: Annotated[str, typer.Argument(
              help="A stage's name, an artifact folder's, or a checkpoint's path.", show_default=False)],
          corpus: Annotated[str, typer.Option(
              help="A corpus of the store with documents that are kept back, or the path of one.")],
          base: Annotated[str | None, typer.Option(
              show_default=False, help="What forgetting and drift are measured from; default: the model that "
                                       "it was trained from, where the store knows it.")] = None,
          items: Annotated[str | None, typer.Option(
              show_default=False, help="Multiple-choice items that must not stand in training documents: "
                                       "a line of JSON each, with question, choices and answer.")] = None,
          domain: Annotated[list[str] | None, typer.Option(
              show_default=False, help="Only this domain of the corpus. May be repeated.")] = None,
          documents: Annotated[int, typer.Option(help="Most documents per side and domain.", min=3)] = 200,
          length: Annotated[int, typer.Option(help="Tokens read of each document.", min=2)] = 256,
          seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
          out: Annotated[Path | None, typer.Option(
              show_default=False, help="Folder of the page; default: in the store, below reports.")] = None,
          store: StoreDir = Path("store")) -> None:
    """Audit a model: contamination, memorization, calibration, forgetting, and drift of weights by layer, on
    one page."""
    from trainwright.core import sharding
    from trainwright.core.context import Context
    from trainwright.core.stage import check_seed
    from trainwright.evaluate.audit._subject import found
    from trainwright.evaluate.audit._texts import Texts
    from trainwright.evaluate.audit._whole import audit as measure
    from trainwright.storage.store import Store
    check_seed(seed, "audit")
    kept, ctx = Store(store), Context(seed=seed, device=sharding.device())
    subject = found(model, corpus, base, items or "", kept, ctx)
    how = Texts(domains=tuple(domain or ()), documents=documents, length=length)
    _show(measure(subject, how, ctx), out or kept.folder("reports", f"audit-{Path(model).name}"))


def _show(told: dict[str, Any], folder: Path) -> None:
    """Write the page, and say what was found."""
    from trainwright.life.run import command
    from trainwright.report import audit as page
    written, console = page.write(folder, told, command()), Terminal()
    for line in page.summary(told):
        console.print(styled(f"[{'red' if told['findings'] else 'green'}]{{}}[/]", line), soft_wrap=True)
    console.print(f"report: {written}", soft_wrap=True)
