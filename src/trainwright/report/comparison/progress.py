"""The progress of a comparison: a bar with the time left, a line for each run."""
from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from trainwright.compare.execute import Record, Watch
from trainwright.report.numbers import duration, value
from trainwright.report.terminal import Terminal, styled

SECONDS = 0.5
"""How often the line of the run under way changes."""


class ComparisonProgress(Watch):
    """A live bar on a terminal, plain lines elsewhere.

    Args:
        metric: that each finished run shows; empty: none.
    """

    def __init__(self, metric: str, console: Console | None = None) -> None:
        self.console, self.metric = console or Terminal(), metric
        self.bar: Progress | None = None
        self.task: Any = None
        self.name, self.at, self.total, self.last = "", 0, 0, 0.0
        self.label = ""

    def stage(self, name: str, kind: str, state: str, info: dict[str, Any]) -> None:
        """A line for each stage that all arms share: those before the first phase."""
        if not self.name and state in ("started", "resumed"):
            self.console.print(styled("[dim]{}: {}, for all arms[/]", name, state))
        if not self.name and state == "finished":
            self.console.print(styled("[dim]{}: finished[/]", name))

    def phase(self, name: str, total: int) -> None:
        self.close()
        self.name, self.at, self.total = name, 0, total
        if self.console.is_terminal:
            self.bar = Progress(TextColumn("{task.description}", markup=False), BarColumn(),
                                MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
                                TextColumn("{task.fields[now]}", style="dim", markup=False),
                                console=self.console, transient=True)
            self.bar.start()
            self.task = self.bar.add_task(name, total=total, now="")

    def begin(self, label: str) -> None:
        self._now(label)
        self.label = label

    def step(self, stage: str, row: dict[str, float]) -> None:
        if self.bar and time.monotonic() - self.last > SECONDS:
            self.last = time.monotonic()
            self.under_way(self.label, row)

    def under_way(self, label: str, row: dict[str, float]) -> None:
        self._now(f"{label}: step {row['step']:.0f}/{row['steps']:.0f}, loss {value(row['loss'])}")

    def done(self, label: str, record: Record) -> None:
        self.at += 1
        if self.bar:
            self.bar.advance(self.task)
        outcome = Text()
        if record.get("failed"):
            how = "ended early" if record["pruned"] else "failed"
            outcome = styled(" [red]{}[/]: {}", how, record["failed"])
        elif record:
            said = f" {self.metric} {value(record['numbers'].get(self.metric))}" if self.metric else ""
            said += f", {duration(record['figures']['seconds'])}" if "seconds" in record["figures"] else ""
            outcome = Text(said)
        head = styled("[dim]{} {}/{}[/] {}", self.name, self.at, self.total, label)
        self.console.print(head.append_text(outcome), highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None

    def _now(self, text: str) -> None:
        if self.bar:
            self.bar.update(self.task, now=text)
