"""The console of every command: what it prints is shown as it is written.

Names, documents and answers from elsewhere are text. Square brackets in them are no markup, ``:words:`` no
pictures, and control characters are written out instead of being obeyed. Our own style is said with
``Text``, or with ``styled``.
"""
from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from typing import IO

from rich.console import (
    Console,
    ConsoleOptions,
    HighlighterType,
    JustifyMethod,
    OverflowMethod,
    RenderableType,
)
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from trainwright.core import ending
from trainwright.core.shown import plain
from trainwright.life import working


class Terminal(Console):
    """A console without markup, on which no text acts on the terminal.

    Args:
        stderr: print to standard error.
        file: print there instead.
    """

    def __init__(self, *, stderr: bool = False, file: IO[str] | None = None) -> None:
        super().__init__(stderr=stderr, file=file, markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        """Nobody reads any more (``| head``): the command is to end, as by a signal, and prints no more."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2 if self.stderr else 1)
        os.close(nowhere)
        ending.ask(signal.SIGPIPE)

    def render_str(
        self, text: str, *, style: str | Style = "", justify: JustifyMethod | None = None,
        overflow: OverflowMethod | None = None, emoji: bool | None = None, markup: bool | None = None,
        highlight: bool | None = None, highlighter: HighlighterType | None = None,
    ) -> Text:
        return super().render_str(plain(text, lines=True), style=style, justify=justify, overflow=overflow,
                                  emoji=emoji, markup=markup, highlight=highlight, highlighter=highlighter)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        working.printing()
        for one in super().render(renderable, options):
            yield one if one.control else Segment(plain(one.text, lines=True), one.style)


def styled(template: str, *texts: object) -> Text:
    """A text of ours in Rich's markup, with foreign texts in its places: ``styled("[red]failed[/]: {}",
    why)``."""
    ours, made, at = Text.from_markup(template, emoji=False), Text(), 0
    for text in texts:
        here = ours.plain.index("{}", at)
        foreign = Text(plain(str(text)))
        for span in ours.spans:
            if span.start <= here < span.end:
                foreign.stylize(span.style)
        made, at = made.append_text(ours[at:here]).append_text(foreign), here + len("{}")
    return made.append_text(ours[at:])
