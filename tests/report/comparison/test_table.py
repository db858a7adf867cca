"""A comparison in a terminal: a line for each arm, at every width."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from tests.report.comparison import sample
from trainwright.report.comparison.numbers import read
from trainwright.report.comparison.table import ComparisonTable


def shown(result: dict[str, Any], width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(ComparisonTable(result))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_table_has_a_line_an_arm() -> None:
    lines = shown(sample.result(), 160).splitlines()
    rows = [
        line.split()
        for line in lines
        if line.split() and line.split()[0] in ("full", "lora", "dora", "ia3", "galore")
    ]
    assert [r[0] for r in rows] == [
        "full",
        "lora",
        "dora",
        "ia3",
        "galore",
        "galore",
    ]  # the last one is the note why it failed
    assert rows[1][1:6] == ["3.142", "+0.037", "[0.032,", "0.043]", "worse"]
    assert rows[1][6:] == [
        "0.010",
        "+0.908",
        "+0.057",
        "0.44",
        "s",
        "×1.08",
        "825",
        "MB",
        "×0.63",
        "197",
        "k",
        "×0.019",
        "788",
        "kB",
        "×0.019",
    ]
    assert rows[4][1:4] == ["–", "–", "failed"]
    assert any("the best adamw.lr of ia3 lies at the edge" in line for line in lines)
    assert sample.SAID["verdict"] in " ".join(lines)


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize("make", [sample.result, sample.many, sample.plain, sample.again])
def test_table_fits_the_terminal_and_loses_nothing(make: Any, width: int) -> None:
    result = make()
    text = shown(result, width)
    assert max(map(len, text.splitlines())) <= width and "…" not in text.replace(
        "…", "", 400 if make is sample.many else 0
    )
    text = " ".join(text.split())
    for one in read(result).others:
        assert all(part in text for part in one.difference(result["metric"]))
    assert all(word in text for word in ("verdict", "detectable", "stored"))


def test_colours_of_a_table_follow_verdicts() -> None:
    console = Console(
        file=io.StringIO(), width=160, force_terminal=True, color_system="standard", legacy_windows=False
    )
    console.print(ComparisonTable(sample.result()))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert (
        "\x1b[31mworse" in text
        and re.search(r"\x1b\[32m *\+0\.057", text)
        and "\x1b[32mno difference" not in text
    )
