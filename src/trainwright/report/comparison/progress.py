"""The progress of a comparison: a bar with the time left, a line for each run."""
from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from trainwright.compare.execute import Record, Watch
from trainwright.report.numbers import duration, value

SECONDS = 0.5
"""How often the line of the run under way changes."""


class ComparisonProgress(Watch):
    """A live bar on a terminal, plain lines elsewhere.

    Args:
        metric: that each finished run shows; empty: none.
    """

    def __init__(self, metric: str, console: Console | None = None) -> None:
        self.console, self.metric = console or Console(), metric
        self.bar: Progress | None = None
        self.task: Any = None
        self.name, self.at, self.total, self.last = "", 0, 0, 0.0
        self.label = ""

    def stage(self, name: str, kind: str, state: str, info: dict[str, Any]) -> None:
        """A line for each stage that all arms share: those before the first phase."""
        if not self.name and state in ("started", "resumed"):
            self.console.print(f"[dim]{name}: {state}, for all arms[/]")
        if not self.name and state == "finished":
            self.console.print(f"[dim]{name}: finished[/]")

    def phase(self, name: str, total: int) -> None:
        self.close()
        self.name, self.at, self.total = name, 0, total
        if self.console.is_terminal:
            self.bar = Progress(TextColumn("{task.description}", table_column=None), BarColumn(),
                                MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
                                TextColumn("[dim]{task.fields[now]}"), console=self.console, transient=True)
            self.bar.start()
            self.task = self.bar.add_task(name, total=total, now="")

    def begin(self, label: str) -> None:
        self._now(label)
        self.label = label

    def step(self, stage: str, row: dict[str, float]) -> None:
        if self.bar and time.monotonic() - self.last > SECONDS:
            self.last = time.monotonic()
            self._now(f"{self.label}: step {row['step']:.0f}/{row['steps']:.0f}, loss {value(row['loss'])}")

    def done(self, label: str, record: Record) -> None:
        self.at += 1
        if self.bar:
            self.bar.advance(self.task)
        outcome = ""
        if record.get("failed"):
            how = "ended early" if record["pruned"] else "failed"
            outcome = f" [red]{how}[/]: {escape(record['failed'])}"
        elif record:
            outcome = f" {self.metric} {value(record['numbers'].get(self.metric))}" if self.metric else ""
            outcome += f", {duration(record['figures']['seconds'])}" if "seconds" in record["figures"] else ""
        self.console.print(f"[dim]{self.name} {self.at}/{self.total}[/] {escape(label)}{outcome}",
                           highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None

    def _now(self, text: str) -> None:
        if self.bar:
            self.bar.update(self.task, now=text)
