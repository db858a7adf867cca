"""A comparison in a terminal: a line an arm; columns that a narrow terminal has no room for go into a second table."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from trainwright.report._compared import Compared, cell, lead, shorten, shown, words
from trainwright.report.numbers import quantity

GAP = 2
NAME = 28
"""Letters of a name in a line; a longer one loses its middle."""
STYLES = {"better": "green", "worse": "red", "failed": "bold red"}
NOTES = ("interval", "verdict", "detectable")
"""The sentences of ``said`` that a terminal shows; the page has them all."""
HEADS = {"seconds_per_step": "time\nper step", "peak_memory_bytes": "peak\nmemory", "trainable_parameters": "trained",
         "stored_bytes": "stored"}


@dataclass(frozen=True)
class Column:
    """A column: its heading and a cell an arm."""

    head: str
    cells: list[Text]

    @property
    def width(self) -> int:
        return max(len(line) for line in (*self.head.split("\n"), *(c.plain for c in self.cells)))


class ComparisonTable:
    """Renders the comparison as wide as the terminal is."""

    def __init__(self, compared: Compared) -> None:
        self.compared = compared

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        c = self.compared
        yield Text(str(c.told["title"]), style="bold")
        yield Text(lead(c), style="dim")
        for columns in self._fitted(options.max_width):
            yield Text()
            yield self._table(columns)
        yield from self._notes()

    def _fitted(self, width: int) -> Iterator[list[Column]]:
        """All columns in one table where there is room; else answers and costs apart, each in as few as possible."""
        named = min(NAME, max(len(a.name) for a in self.compared.arms))

        def fits(columns: list[Column]) -> bool:
            return named + sum(GAP + x.width for x in columns) <= width

        first, second = answers(self.compared), costs(self.compared)
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
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold", collapse_padding=True)
        table.add_column("arm", style="cyan", no_wrap=True)
        for column in columns:
            table.add_column(column.head, justify="left" if column.head == "verdict" else "right", no_wrap=True)
        for i, name in enumerate(shorten([a.name for a in self.compared.arms], NAME)):
            table.add_row(Text(name), *(column.cells[i] for column in columns))
        return table

    def _notes(self) -> Iterator[Text]:
        c = self.compared
        said = c.told.get("said") or {}
        notes = [Text(f"{a.name} failed: {a.failed}", style="red") for a in c.arms if a.failed]
        notes += [Text(str(w), style="yellow") for w in c.told.get("warnings") or []]
        notes += [Text(said[n], style="dim") for n in NOTES if n in said]
        if notes:
            yield Text()
        yield from notes


def answers(c: Compared) -> list[Column]:
    """The main metric with its difference and verdict, then gain and forgetting."""
    m = c.metric
    found = [Column(words(m).replace(" on ", "\non "), [Text(quantity(m, a.mean(m))) for a in c.arms]),
             Column("difference", [Text(a.difference(m)[0]) for a in c.arms]),
             Column("95 %\ninterval", [Text(a.difference(m)[1]) for a in c.arms]),
             Column("verdict", [Text(a.standing(m), style=STYLES.get(a.standing(m), "")) for a in c.arms]),
             Column("detectable", [Text(a.detectable(m)) for a in c.arms])]
    for metric in shown(c, [*c.changes("gain"), *c.changes("forgetting")]):
        found.append(Column(metric.replace("/", "\n"), [Text(cell(c, a, metric), style=STYLES.get(a.verdict(metric), ""))
                                                        for a in c.arms]))
    return found


def costs(c: Compared) -> list[Column]:
    """What each arm costs; nothing that none of them has."""
    return [Column(head, [Text(cell(c, a, m)) for a in c.arms]) for m, head in HEADS.items() if shown(c, [m])]
