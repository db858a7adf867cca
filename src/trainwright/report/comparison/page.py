"""The page of a comparison: one HTML file that needs nothing else; its plots and tables lie beside it, to be
taken along."""
from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from trainwright.core.shown import plain
from trainwright.report import numbers
from trainwright.report.comparison import export, plots
from trainwright.report.comparison.numbers import (
    FEW,
    WORDS,
    Arm,
    Result,
    cell,
    read,
    shown,
    unit_words,
    words,
)
from trainwright.report.comparison.sentences import facts, lead, story

COSTS = ("seconds_per_step", "peak_memory_bytes", "trainable_parameters", "stored_bytes")
"""Costs in the table of the answer."""
LEDGER = ("steps", "tokens", "flops", "seconds", "seconds_per_step", "peak_memory_bytes", "state_bytes",
          "stored_bytes", "parameters", "trainable_parameters")


def write(folder: Path, result: dict[str, Any]) -> Path:
    """Write ``folder/index.html``, its plots and its tables; returns the page.

    Args:
        result: what ``result.json`` holds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    c = read(result)
    text = environment().get_template("comparison.html").render(
        c=c, result=result, main=c.metric, lead=lead(c), story=story(c), facts=facts(c),
        few=len(c.others) <= FEW, changes=shown(c, [*c.changes("gain"), *c.changes("forgetting")]),
        costs=shown(c, COSTS), ledger=[k for k in LEDGER if any(a.ledger.get(k) is not None for a in c.arms)],
        differences=plots.differences(c, folder), noise=plots.noise(c), beyond=plots.beyond(c),
        balance=plots.balance(c, folder), curves=plots.curves(c, folder), pareto=plots.pareto(c, folder),
        tuning=plots.tuning(c, folder), selected=plots.selected(c, folder), grouped=_grouped(c),
        caveats=any(a.caveats for a in c.others), along=export.tables(c, folder))
    page = folder / "index.html"
    page.write_text(plain(text, lines=True), encoding="utf-8")
    return page


@cache
def environment() -> Environment:
    """The templates, each compiled once."""
    made = Environment(loader=PackageLoader("trainwright.report", "templates"), autoescape=True,
                       trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"duration": numbers.duration, "words": words, "unit": unit_words, "p": numbers.p_value,
                     "pretty": lambda x: json.dumps(x, indent=2, ensure_ascii=False, default=str)}
    made.globals |= {"NONE": numbers.NONE, "quantity": numbers.quantity, "cell": cell,
                     "ledger_words": _ledger_words}
    return made


def _ledger_words(name: str) -> str:
    return WORDS.get(name, name.replace("_", " "))


def _grouped(c: Result) -> list[tuple[str, list[tuple[Arm, dict[str, Any]]]]]:
    """All comparisons, metric by metric."""
    found = {m: [(a, a.compared[m]) for a in c.others if m in a.compared] for m in c.metrics}
    return [(m, [(a, one) for a, one in rows if one.get("difference") is not None])
            for m, rows in found.items()]
