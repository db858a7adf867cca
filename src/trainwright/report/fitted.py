"""A fitted law as people read it in a terminal."""
from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from trainwright.core import registry
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Fit, ScalingLaw
from trainwright.planning import runs
from trainwright.storage.store import Store


def fit(settings: dict[str, Any], rows: Path | None, store: Path, stage: str | None, loss: str | None,
        known: dict[str, float | None]) -> Group:
    """The law of these settings (``use`` among them), fitted on rows of a file or of a store, for printing.

    Raises:
        UserError: no law; half of a place to predict for; rows that are missing, wrong or too few.
    """
    law = registry.create(settings, Path(), "fit-law")
    if not isinstance(law, ScalingLaw):
        raise UserError(f"{settings['use']} is no law; `trainwright list --kind ScalingLaw` shows all.")
    if len({value is None for value in known.values()}) == 2:
        raise UserError(f"{' and '.join(f'--{name}' for name in known)} go together: "
                        "a prediction needs both.")
    if rows is not None and (stage is not None or loss is not None):
        raise UserError("--stage and --loss choose from a store; with --rows the table says it all.")
    if rows is None:
        table, notes = runs.from_store(Store(store), law.scratch, stage, loss)
    else:
        table, notes = runs.from_file(rows), []
    found = runs.fitted(law, table, Context(), str(store if rows is None else rows))
    return render(found, law, {n: v for n, v in known.items() if v is not None}, len(table), notes)


def render(fit: Fit, before: ScalingLaw, known: dict[str, float], rows: int, notes: list[str]) -> Group:
    """Constants with their intervals, the error on unseen rows, what it predicts, and the recipe's line."""
    constants = _table("constant", "fitted", "95 % interval", "before")
    for name, pair in runs.intervals(fit).items():
        now, then = (f"{getattr(law, name):.5g}" for law in (fit.law, before))
        constants.add_row(name, now, _interval(pair), then)
    parts: list[Any] = [Text(f"{before.name}, fitted on {rows} runs", style="bold"), constants, Text()]
    if fit.errors:
        errors = _table("on groups of runs that the fit had not seen", "")
        for name, value in fit.errors.items():
            errors.add_row(Text(name), f"{value:.3g}")
        parts += [errors, Text()]
    else:
        why = "Its error is not known: there are too few runs to hold any out."
        parts += [Text(why, style="yellow"), Text()]
    if known or not fit.law.needs_a_place():
        parts += [_predictions(fit, before, known), *_doubts(fit.law, known), Text()]
    parts += [Text(f"note: {note}", style="yellow") for note in [*notes, *fit.notes]]
    return Group(*parts, Text("As a method of a recipe:", style="dim"), Text(recipe_line(fit.law)))


def _predictions(fit: Fit, before: ScalingLaw, known: dict[str, float]) -> Table:
    at = ", ".join(f"{value:,.6g} {name}" for name, value in known.items())
    table = _table(f"at {at}" if at else "what it chooses", "fitted", "95 % interval", "before")
    suggested = runs.suggested(before, known)
    for name, (value, pair) in runs.predicted(fit, known).items():
        then = _number(suggested[name]) if name in suggested else ""
        table.add_row(Text(name), _number(value), _interval(pair) if pair else "", then)
    return table


def _doubts(law: ScalingLaw, known: dict[str, float]) -> list[Text]:
    doubts = law.doubts(known)
    return [Text(doubts, style="yellow")] if doubts else []


def recipe_line(law: ScalingLaw) -> str:
    """The law as a recipe names it, with every setting that is not the default."""
    values = {f.name: (getattr(law, f.name), f.default) for f in dataclasses.fields(law)}
    settings = [f"{name} = {_toml(value)}" for name, (value, default) in values.items() if value != default]
    return "{ " + ", ".join([f"use = {_toml(registry.use_of(law))}", *settings]) + " }"


def _toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)


def _number(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, (int, float)) and abs(value) < 1e4 else f"{value:,.0f}"


def _interval(pair: tuple[float, float]) -> str:
    return f"{_number(pair[0])} to {_number(pair[1])}"


def _table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, head in enumerate(heads):
        table.add_column(Text(head), justify="right" if i else "left", style="" if i else "cyan")
    return table
