"""What a terminal shows of a run: a live display while a stage works, one line when it is done."""
from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from trainwright.core.stage import Stage, stages
from trainwright.life.listener import Listener
from trainwright.report.numbers import (
    NONE,
    SIGNED,
    count,
    duration,
    measured,
    metrics_of,
    share,
    signed,
    size,
    value,
)
from trainwright.report.terminal import Terminal

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
FIRST_LINE = 5.0
"""Seconds before the first plain line."""
SPARSER = 0.05
"""Later plain lines wait for this share of the time so far: about 20 in a minute or two, 140 in ten hours."""


class Progress(Listener):
    """Shows a run: live in a terminal, in a few plain lines elsewhere.

    A step only leaves its row; a thread draws four times a second, so that training never waits for the
    terminal.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Terminal()
        self.states: dict[str, dict[str, str]] = {}
        """``kind``, ``state`` and, after a failure, ``why`` of each stage so far, for the page of the run."""
        self.made: dict[str, Path] = {}
        """The artifacts of the stages that are done."""
        self.live: Live | None = None
        self.stage_name, self.kind, self.info = "", "", {}  # type: tuple[str, str, dict[str, Any]]
        self.began = self.said = 0.0
        self.first: tuple[float, float] | None = None
        self.row: dict[str, float] = {}
        self.measured: dict[str, float] = {}

    # ---- what a run reports ---------------------------------------------------------------------------

    def stage(self, name: str, kind: str, state: str, info: dict[str, Any]) -> None:
        """Start or stop the display, and leave one line on what was done."""
        resumed = state == "finished" and self.states.get(name, {}).get("state") == "resumed"
        self.states[name] = {"kind": kind, "state": "resumed" if resumed else state}
        if "why" in info:
            self.states[name]["why"] = str(info["why"])
        if "path" in info:
            self.made[name] = Path(info["path"])
        if state in ("started", "resumed"):
            return self._start(name, kind, state, info)
        self._stop()
        seconds = time.monotonic() - self.began if self.stage_name == name else None
        if state == "cached":
            self._print(Text(f"{name:<8} cached  {info.get('path', '')}", style="dim"))
        elif state == "failed":
            row = self.row if self.stage_name == name else {}
            done = f" after {row['step']:,.0f} of {row['steps']:,.0f} steps" if row else ""
            text = f"stopped{done} · {duration(seconds)}"
            self._print(Text.assemble((f"{name:<8} ", "bold"), (text, "red")))
        else:
            self._print(Text.assemble((f"{name:<8} ", "bold green"), outcome(kind, info, seconds)))
        self.stage_name, self.row = "", {}

    def step(self, stage: str, row: dict[str, float]) -> None:
        """Remember the row; draw nothing."""
        now = time.monotonic()
        self.row = row
        if self.first is None:
            self.first = (now, row["step"])
        if any(name.startswith("eval/") for name in row):
            self.measured = {n[5:]: x for n, x in row.items() if n.startswith("eval/")}
        if self.live is None and now - self.said > max(FIRST_LINE, SPARSER * (now - self.began)):
            self.said = now
            at = Text(f"{stage:<8} step {row['step']:,.0f}/{row['steps']:,.0f} · ")
            self._print(at + self._figures() + self._evaluation())

    def say(self, line: str) -> None:
        """Print a line as it is, above the display."""
        self._print(Text(line))

    def close(self) -> None:
        """Take the display away, whatever happened."""
        self._stop()

    # ---- the display ----------------------------------------------------------------------------------

    def _start(self, name: str, kind: str, state: str, info: dict[str, Any]) -> None:
        self._stop()
        self.stage_name, self.kind, self.info = name, kind, info
        self.began = self.said = time.monotonic()
        self.first, self.row, self.measured = None, {}, {}
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self.live = Live(get_renderable=self._render, console=self.console, refresh_per_second=4,
                             transient=True)
            self.live.start()
        else:
            self._print(Text(f"{name:<8} {state}") + Text("".join(f" · {part}" for part in sizes(info))))

    def _stop(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _print(self, line: Text) -> None:
        self.console.print(line, soft_wrap=True, highlight=False)

    def _render(self) -> Text:
        """At most three short lines, made of plain text, which costs a tenth of a table."""
        elapsed, row, width = time.monotonic() - self.began, self.row, self.console.width - 1
        turn = SPINNER[int(elapsed * 4) % len(SPINNER)]
        head = Text.assemble((f"{self.stage_name:<8} ", "bold cyan"), no_wrap=True, overflow="ellipsis")
        if not row:
            known = "".join(f" · {part}" for part in sizes(self.info))
            doing = stages().get(self.kind, Stage).doing
            return _cut(head + Text(f"{turn} {doing} · {duration(elapsed)}{known}"), width)
        done = min(1.0, row["step"] / max(row["steps"], 1))
        steps = f"{row['steps']:,.0f}"
        tail = f" {row['step']:>{len(steps)},.0f}/{steps} {done:>5.0%}  {self._left():>11} left"
        bar = max(6, min(60, width - len(head) - len(tail)))
        full = round(done * bar)
        bars = Text("━" * full, "cyan") + Text("━" * (bar - full), "bright_black")
        lines = [_cut(head + bars + Text(tail), width), _cut(Text(f"{'':<9}") + self._figures(), width)]
        if self.measured:
            lines.append(_cut(Text(f"{'':<8}", "dim") + self._evaluation(), width))
        return Text("\n").join(lines)

    def _figures(self) -> Text:
        row = self.row
        parts = [f"loss {value(row.get('loss'))}", f"lr {row.get('lr', 0.0):.2g}",
                 f"{count(row.get('tokens_per_second'))} tokens/s", size(row.get("memory_bytes"))]
        if self.live is None:
            parts.append(f"{self._left()} left")
        return Text(" · ".join(parts))

    def _evaluation(self) -> Text:
        shown = {n: x for n, x in self.measured.items() if not n.startswith("perplexity/")}
        return Text("".join(f" · {n} {value(x)}" for n, x in shown.items())[2 if self.live else 0:], "dim")

    def _left(self) -> str:
        """Time to the end at the pace since the first step of this process (which compiled, or resumed)."""
        if self.first is None or self.row["step"] <= self.first[1]:
            return NONE
        pace = (time.monotonic() - self.first[0]) / (self.row["step"] - self.first[1])
        return duration(pace * max(0.0, self.row["steps"] - self.row["step"]))


def _cut(line: Text, width: int) -> Text:
    line.truncate(width, overflow="ellipsis")
    return line


def sizes(info: dict[str, Any]) -> list[str]:
    """What is known of a stage before it starts, in words."""
    out = [f"{info['steps']:,} steps"] if info.get("steps") else []
    out += [f"{count(info['tokens'])} tokens"] if info.get("tokens") else []
    if info.get("parameters"):
        part = info.get("trainable", info["parameters"])
        some = f", {count(part)} trained" if part != info["parameters"] else ""
        out.append(f"{count(info['parameters'])} parameters{some}")
    return out


def outcome(kind: str, figures: dict[str, Any], seconds: float | None) -> str:
    """What a finished stage did, in one line; which parts it has follows from its figures."""
    parts: list[str] = []
    if stages().get(kind, Stage).trains:
        parts = [f"trained {figures.get('steps', 0):,} steps", f"{count(figures.get('tokens'))} tokens",
                 f"loss {value(figures.get('loss'))}"]
        seconds = figures.get("seconds", seconds)
    if "documents" in figures:
        parts.append(f"{figures['documents']:,} documents")
        parts += [f"{count(figures['tokens'])} tokens"] if "tokens" in figures else []
    if "models" in figures:
        parts.append("merged " + " + ".join(figures["models"]))
    if "numbers" in figures:
        parts.append(f"measured {', '.join(figures['numbers'])}")
    if "sparsity" in figures:
        parts += [f"{count(figures.get('parameters'))} parameters", f"{share(figures['sparsity'])} zeros"]
    parts.append(duration(seconds))
    if figures.get("peak_memory_bytes"):
        parts.append(f"peak {size(figures['peak_memory_bytes'])}")
    if figures.get("delta_bytes"):
        parts.append(f"adapter {size(figures['delta_bytes'])}")
    if figures.get("stopped"):
        parts.append(f"ended early by {figures['stopped']}")
    if kind == "train" and (kept := figures.get("kept")):
        parts.append(f"kept step {kept['step']:,} ({kept['metric']} {value(kept['value'])})")
    return " · ".join(parts)


def evaluation_table(figures: dict[str, Any]) -> Table:
    """Each model on each domain: gain is how much lower than the baseline on new ones, forgetting how much
    higher on old ones."""
    rows = measured(figures)
    metrics = [m for m in metrics_of(rows) if m != "perplexity"]
    baseline = figures.get("baseline")
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left", caption_justify="left")
    for column in ("domain", "model"):
        table.add_column(column, overflow="fold")
    for m in metrics:
        table.add_column(m.replace("_", " "), justify="right")
        if m in SIGNED and baseline:
            table.add_column(f"against {baseline}", justify="right")
    for i, row in enumerate(rows):
        first = i == 0 or rows[i - 1].domain != row.domain
        last = i + 1 == len(rows) or rows[i + 1].domain != row.domain
        model = Text(row.model, "dim" if row.baseline else "")
        table.add_row(Text(row.domain, "bold") if first else "", model, *_cells(row, metrics, bool(baseline)),
                      end_section=last)
    if baseline and any(m in SIGNED for m in metrics):
        table.caption = "gain: lower on a new domain; forgetting: higher on an old one"
    return table


def _cells(row: Any, metrics: list[str], compared: bool) -> list[Text]:
    cells = []
    for m in metrics:
        cells.append(Text(row.written(m), "dim" if row.baseline else ""))
        if m in SIGNED and compared:
            colour = {True: "green", False: "red", None: ""}[row.good(m)]
            cells.append(Text(f"{row.role} {signed(row.against[m])}" if m in row.against else "", colour))
    return cells
