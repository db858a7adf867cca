"""What people see of a comparison: a table in the terminal, and a page that needs nothing else, with its plots as PNG files."""
from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from rich.console import RenderableType

from trainwright.report import _comparison_drawn as drawn
from trainwright.report import numbers
from trainwright.report._compared import (
    FEW,
    WORDS,
    Arm,
    Compared,
    cell,
    facts,
    lead,
    read,
    shown,
    story,
    unit_words,
    words,
)
from trainwright.report._comparison_table import ComparisonTable

COSTS = ("seconds_per_step", "peak_memory_bytes", "trainable_parameters", "stored_bytes")
LEDGER = ("steps", "tokens", "flops", "seconds", "seconds_per_step", "peak_memory_bytes", "state_bytes", "stored_bytes",
          "parameters", "trainable_parameters")


def table(result: dict[str, Any]) -> RenderableType:
    """The comparison for a terminal, as wide as that is; ``result`` is what ``result.json`` holds."""
    return ComparisonTable(read(result))


def write(folder: Path, result: dict[str, Any]) -> Path:
    """Write ``folder/index.html`` and its plots as PNG files; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    c = read(result)
    text = _environment().get_template("comparison.html").render(
        c=c, told=result, main=c.metric, lead=lead(c), story=story(c), facts=facts(c), few=len(c.others) <= FEW,
        changes=shown(c, [*c.changes("gain"), *c.changes("forgetting")]), costs=shown(c, COSTS),
        ledger=[k for k in LEDGER if any(a.ledger.get(k) is not None for a in c.arms)],
        differences=drawn.differences(c, folder), noise=drawn.noise(c), beyond=drawn.beyond(c),
        balance=drawn.balance(c, folder), curves=drawn.curves(c, folder), pareto=drawn.pareto(c, folder),
        tuning=drawn.tuning(c, folder), selected=drawn.selected(c, folder), grouped=_grouped(c))
    page = folder / "index.html"
    page.write_text(text, encoding="utf-8")
    return page


@cache
def _environment() -> Environment:
    made = Environment(loader=PackageLoader("trainwright.report", "templates"), autoescape=True,
                       trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"duration": numbers.duration, "words": words, "unit": unit_words, "p": numbers.p_value,
                     "pretty": lambda x: json.dumps(x, indent=2, ensure_ascii=False, default=str)}
    made.globals |= {"NONE": numbers.NONE, "quantity": numbers.quantity, "cell": cell, "ledger_words": _ledger_words}
    return made


def _ledger_words(name: str) -> str:
    return WORDS.get(name, name.replace("_", " "))


def _grouped(c: Compared) -> list[tuple[str, list[tuple[Arm, dict[str, Any]]]]]:
    """All comparisons, metric by metric."""
    return [(m, [(a, a.compared[m]) for a in c.others if a.compared.get(m, {}).get("difference") is not None]) for m in c.metrics]
