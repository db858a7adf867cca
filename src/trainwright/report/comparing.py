"""A comparison as it goes on: what will run, a bar with an estimate, a line for each run."""
from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from trainwright.compare.execute import Record, Watch
from trainwright.compare.forecast import Forecast
from trainwright.report.numbers import NONE, count, duration, size, value


def forecast_table(found: Forecast) -> Table:
    """Arms x seeds x trials, what a run of each will take, and what is shared."""
    table = Table(box=None, pad_edge=False, header_style="bold", caption_justify="left")
    for head in ("arm", "runs", "tuning trials", "steps a run", "time a run", "peak memory"):
        table.add_column(head, justify="left" if head == "arm" else "right", style="cyan" if head == "arm" else "")
    for a in found.arms:
        table.add_row(escape(a.name), str(a.runs), str(a.trials) if a.trials else NONE, count(a.steps), duration(a.seconds),
                      size(a.memory_bytes))
    shared = ", ".join(f"{name} ({'in the store' if there else 'once'})" for name, there in found.shared)
    table.caption = (f"predicted: {duration(found.seconds)} of training in all, at most {size(found.memory_bytes)} of memory"
                     + (f"; shared by all: {shared}" if shared else ""))
    return table


class Comparing(Watch):
    """A live bar on a terminal, plain lines elsewhere."""

    def __init__(self, metric: str, console: Console | None = None) -> None:
        self.console, self.metric = console or Console(), metric
        self.bar: Progress | None = None
        self.task: Any = None
        self.name, self.at, self.total, self.last = "", 0, 0, 0.0
        self.label = ""

    def stage(self, name: str, kind: str, state: str, info: dict[str, Any]) -> None:
        if not self.name and state in ("started", "resumed"):
            self.console.print(f"[dim]{name}: {state}, for all arms[/]")
        if not self.name and state == "finished":
            self.console.print(f"[dim]{name}: finished[/]")

    def phase(self, name: str, total: int) -> None:
        self.close()
        self.name, self.at, self.total = name, 0, total
        if self.console.is_terminal:
            self.bar = Progress(TextColumn("{task.description}", table_column=None), BarColumn(), MofNCompleteColumn(),
                                TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("[dim]{task.fields[now]}"),
                                console=self.console, transient=True)
            self.bar.start()
            self.task = self.bar.add_task(name, total=total, now="")

    def begin(self, label: str) -> None:
        self._now(label)
        self.label = label

    def step(self, stage: str, row: dict[str, float]) -> None:
        if self.bar and time.monotonic() - self.last > 0.5:
            self.last = time.monotonic()
            self._now(f"{self.label}: step {row['step']:.0f}/{row['steps']:.0f}, loss {value(row['loss'])}")

    def done(self, label: str, record: Record) -> None:
        self.at += 1
        if self.bar:
            self.bar.advance(self.task)
        said = ""
        if record.get("failed"):
            said = f" [red]{'ended early' if record['pruned'] else 'failed'}[/]: {escape(record['failed'])}"
        elif record:
            said = f" {self.metric} {value(record['numbers'].get(self.metric))}" if self.metric else ""
            said += f", {duration(record['figures']['seconds'])}" if "seconds" in record["figures"] else ""
        self.console.print(f"[dim]{self.name} {self.at}/{self.total}[/] {escape(label)}{said}", highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None

    def _now(self, text: str) -> None:
        if self.bar:
            self.bar.update(self.task, now=text)
