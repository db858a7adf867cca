"""A page of a run while it runs: a file that loads itself again every few seconds, and needs no server.

It is drawn in a thread of its own, and as seldom as it takes to cost little: drawing never takes more than a
twentieth of the time. When the run ends, the page says so and leads to the report.
"""
from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from trainwright.core.files import write_text
from trainwright.core.shown import plain
from trainwright.life.listener import Listener
from trainwright.report.numbers import NONE, count, duration, size, value

EVERY = 5.0
"""Seconds between two pages, at least."""
SHARE = 0.05
"""Of the time that drawing may take."""
ROWS = 4000
"""Rows of a stage that are kept to be drawn; of more, every other one goes."""
LINES = 12
"""Lines that a run said, as many as stay on the page."""


@cache
def environment() -> Environment:
    """The templates, each compiled once."""
    return Environment(loader=PackageLoader("trainwright.report", "templates"), autoescape=True,
                       trim_blocks=True, lstrip_blocks=True)


class Live(Listener):
    """Writes ``live.html`` into a folder while a run goes on."""

    def __init__(self, folder: Path, title: str, names: list[str]) -> None:
        self.file, self.title = folder / "live.html", title
        self.states: dict[str, str] = dict.fromkeys(names, "waiting")
        self.lines: list[str] = []
        self.stage_name, self.rows = "", list[dict[str, float]]()
        self.every = self.seen = 1
        self.began, self.ended = time.monotonic(), ""
        folder.mkdir(parents=True, exist_ok=True)
        self.write()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._draw, daemon=True)
        self.thread.start()

    # ---- what a run reports ---------------------------------------------------------------------------

    def stage(self, name: str, kind: str, state: str, info: dict[str, Any]) -> None:
        self.states[name] = {"started": "running", "resumed": "running"}.get(state, state)
        if "why" in info:
            self.lines = [*self.lines, f"{name} failed: {info['why']}"][-LINES:]

    def step(self, stage: str, row: dict[str, float]) -> None:
        """Keep the row, and draw nothing. The rows of the training before stay until there are others."""
        if stage != self.stage_name:
            self.stage_name, self.rows, self.every, self.seen = stage, [], 1, 0
        if self.seen % self.every == 0 or _measured(row):
            self.rows.append(row)
        if len(self.rows) > ROWS:
            self.rows = [r for i, r in enumerate(self.rows) if i % 2 == 0 or _measured(r)]
            self.every *= 2
        self.seen += 1

    def say(self, line: str) -> None:
        self.lines = [*self.lines, *plain(line, lines=True).splitlines()][-LINES:]

    def close(self) -> None:
        """The run is over, whatever happened: the last page does not load itself again."""
        if self.ended:
            return
        self.ended = "stopped" if sys.exception() else "finished"
        self.over.set()
        self.thread.join()
        with suppress(OSError):                       # the run itself says what the machine refuses
            self.write()

    # ---- the page -------------------------------------------------------------------------------------

    def _draw(self) -> None:
        wait = EVERY
        while not self.over.wait(wait):
            began = time.monotonic()
            with suppress(OSError):
                self.write()
            wait = max(EVERY, (time.monotonic() - began) / SHARE)

    def write(self) -> None:
        """Write the page, whole or not at all."""
        rows, plot = list(self.rows), None
        if rows:
            from trainwright.report import plots  # which takes a while to import
            domains = sorted({n[10:] for r in rows for n in r if n.startswith("eval/loss/")})
            figure = plots.training(rows, {n: 1 + i for i, n in enumerate(domains)})
            label = f"Training loss of {self.stage_name} so far, now {value(rows[-1].get('loss'))}."
            plot = Markup(plots.svg(figure, "live", label)) if figure else None
        text = environment().get_template("live.html").render(
            title=self.title, ended=self.ended, states=list(self.states.items()), plot=plot,
            stage=self.stage_name, facts=self.facts(rows), lines=self.lines, every=round(EVERY),
            running=duration(time.monotonic() - self.began))
        write_text(self.file, plain(text, lines=True))

    @staticmethod
    def facts(rows: list[dict[str, float]]) -> list[tuple[str, str]]:
        """The few figures of the last step."""
        if not rows:
            return []
        row = rows[-1]
        measured = {n[5:]: x for r in rows for n, x in r.items() if n.startswith("eval/loss/")}
        found = [("step", f"{row['step']:,.0f} of {row['steps']:,.0f}"), ("loss", value(row.get("loss"))),
                 *((f"{name.replace('/', ' on ')}, measured", value(x)) for name, x in measured.items()),
                 ("gradient norm", value(row.get("grad_norm"))),
                 ("learning rate", f"{row.get('lr', 0.0):.2g}"),
                 ("tokens a second", count(row.get("tokens_per_second"))),
                 ("memory", size(row.get("memory_bytes")))]
        return [(name, said) for name, said in found if said != NONE]


def _measured(row: dict[str, float]) -> bool:
    return any(name.startswith("eval/") for name in row)
