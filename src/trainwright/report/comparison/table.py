"""A comparison in a terminal: what it is estimated to cost, and its result."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from trainwright.report.comparison.numbers import Result, cell, read, shorten, shown, words
from trainwright.report.comparison.sentences import lead
from trainwright.report.numbers import NONE, count, duration, quantity, size

if TYPE_CHECKING:
    from trainwright.compare.estimate import Estimate

GAP = 2
"""Blanks between two columns."""
NAME = 28
"""Letters of a name in a line; a longer one loses its middle."""
STYLES = {"better": "green", "worse": "red", "failed": "bold red"}
NOTES = ("interval", "verdict", "detectable")
"""The sentences of ``said`` that a terminal shows; the page has them all."""
HEADS = {"seconds_per_step": "time\nper step", "peak_memory_bytes": "peak\nmemory",
         "trainable_parameters": "trained", "stored_bytes": "stored"}


def estimate(found: Estimate) -> Table:
    """Arms x seeds x trials, what a run of each will take, and what is shared."""
    table = Table(box=None, pad_edge=False, header_style="bold", caption_justify="left")
    for head in ("arm", "runs", "tuning trials", "steps a run", "time a run", "peak memory"):
        first = head == "arm"
        table.add_column(head, justify="left" if first else "right", style="cyan" if first else "")
    for a in found.arms:
        runs, trials = f"{'up to ' if found.until else ''}{a.runs}", str(a.trials) if a.trials else NONE
        table.add_row(Text(a.name), runs, trials, count(a.steps), duration(a.seconds), size(a.memory_bytes))
    shared = ", ".join(f"{name} ({'in the store' if there else 'once'})" for name, there in found.shared)
    training = f"{'at most ' if found.until else ''}{duration(found.seconds)} of training in all"
    beside = f", {found.at_a_time} runs at a time" if found.at_a_time > 1 else ""
    total = f"{training}{beside}, at most {size(found.memory_bytes)} of memory"
    table.caption = f"estimated: {total}" + (f"; shared by all: {shared}" if shared else "")
    return table


@dataclass(frozen=True)
class Column:
    """A column: its heading and a cell for each arm."""

    head: str
    cells: list[Text]

    @property
    def width(self) -> int:
        return max(len(line) for line in (*self.head.split("\n"), *(c.plain for c in self.cells)))


class ComparisonTable:
    """A line for each arm, as wide as the terminal; columns that do not fit go into a second table.

    Args:
        result: what ``result.json`` holds.
    """

    def __init__(self, result: dict[str, Any]) -> None:
        self.result = read(result)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(str(self.result.json["title"]), style="bold")
        yield Text(lead(self.result), style="dim")
        for columns in self._fitted(options.max_width):
            yield Text()
            yield self._table(columns)
        yield from self._notes()

    def _fitted(self, width: int) -> Iterator[list[Column]]:
        """All columns in one table where they fit; else answers and costs apart, in as few as possible."""
        named = min(NAME, max(len(a.name) for a in self.result.arms))

        def fits(columns: list[Column]) -> bool:
            return named + sum(GAP + x.width for x in columns) <= width

        first, second = answers(self.result), costs(self.result)
        for group in [[*first, *second]] if fits([*first, *second]) else [first, second]:
            row: list[Column] = []
            for column in group:
                if row and not fits([*row, column]):
                    yield row
                    row = []
                row.append(column)
            if row:
                yield row

    def _table(self, columns: list[Column]) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold",
                      collapse_padding=True)
        table.add_column("arm", style="cyan", no_wrap=True)
        for column in columns:
            justify = "left" if column.head == "verdict" else "right"
            table.add_column(column.head, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for i, name in enumerate(shorten([a.name for a in self.result.arms], NAME)):
            table.add_row(Text(name), *(column.cells[i] for column in columns))
        return table

    def _notes(self) -> Iterator[Text]:
        sentences = self.result.json.get("said") or {}
        notes = [Text(f"{a.name} failed: {a.failed}", style="red") for a in self.result.arms if a.failed]
        notes += [Text(f"{a.name}: {'; '.join(a.caveats)}.", style="yellow")
                  for a in self.result.others if a.caveats]
        notes += [Text(str(w), style="yellow") for w in self.result.json.get("warnings") or []]
        notes += [Text(sentences[n], style="dim") for n in NOTES if n in sentences]
        if notes:
            yield Text()
        yield from notes


def answers(c: Result) -> list[Column]:
    """The main metric with its difference and verdict, then gain and forgetting."""
    m = c.metric
    found = [Column(words(m).replace(" on ", "\non "), [Text(quantity(m, a.mean(m))) for a in c.arms]),
             Column("difference", [Text(a.difference(m)[0]) for a in c.arms]),
             Column("95 %\ninterval", [Text(a.difference(m)[1]) for a in c.arms]),
             Column("verdict", [Text(a.standing(m), style=STYLES.get(a.standing(m), "")) for a in c.arms]),
             Column("detectable", [Text(a.detectable(m)) for a in c.arms])]
    for metric in shown(c, [*c.changes("gain"), *c.changes("forgetting")]):
        cells = [Text(cell(c, a, metric), style=STYLES.get(a.verdict(metric), "")) for a in c.arms]
        found.append(Column(metric.replace("/", "\n"), cells))
    return found


def costs(c: Result) -> list[Column]:
    """What each arm costs; nothing that none of them has."""
    return [Column(head, [Text(cell(c, a, m)) for a in c.arms]) for m, head in HEADS.items() if shown(c, [m])]
