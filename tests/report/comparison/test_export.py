"""What can be taken along: each file holds what the page says, in its own format."""

from __future__ import annotations

import csv
import re
import xml.etree.ElementTree as Tree
from pathlib import Path

import pytest

from tests.report.comparison import sample
from trainwright.report import plots as drawing
from trainwright.report.comparison import export, plots
from trainwright.report.comparison.numbers import read


def rows(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.open(encoding="utf-8")))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("along")
    named = export.tables(read(sample.result()), out)
    assert {name for name, _ in named} == {f.name for f in out.iterdir()}
    return out


@pytest.mark.slow
def test_csv_has_every_difference_and_every_run(written: Path) -> None:
    result = sample.result()
    found = {(r["arm"], r["metric"]): r for r in rows(written / "comparisons.csv")}
    assert len(found) == len(result["comparisons"])
    for one in (c for c in result["comparisons"] if c["difference"] is not None):
        row = found[one["arm"], one["metric"]]
        assert float(row["difference"]) == one["difference"] and float(row["low"]) == one["low"]
        assert row["verdict"] == one["verdict"] and int(row["n"]) == len(one["values"])
    assert "edge" in found["ia3", "loss/code"]["caveats"] and not found["lora", "loss/code"]["caveats"]
    runs = rows(written / "runs.csv")
    assert len(runs) == sum(len(r["metrics"]) for a in result["arms"] for r in a["runs"])


def test_latex_has_a_line_an_arm_and_its_caveats(written: Path) -> None:
    text = (written / "table.tex").read_text()
    lines = text.split(r"\\")
    assert len(lines) == 1 + 5 + 1 and len({line.count("&") for line in lines[:-1]}) == 1
    assert "peak memory" in text and "$-$0.003" in text and r"95 \% interval" in text
    assert r"ia3\textsuperscript{1}" in text and r"\textsuperscript{1}tuned to the edge of what was" in text
    assert "−" not in text and "×" not in text and "–" not in text


def test_nothing_of_a_user_is_a_command_of_latex() -> None:
    evil = r"50 % of \input{/etc/passwd} & $x_1$ #1 ~ ^"
    assert export.escaped(evil) == (
        r"50 \% of \textbackslash{}input\{/etc/passwd\} \& \$x\_1\$ \#1 \textasciitilde{} \textasciicircum{}"
    )
    result = sample.single()
    result["title"] = "two\nlines \\end{document}"
    first = export.latex(read(result)).splitlines()[0]
    assert first == "% two\\nlines \\end{document}", "a comment is one line"


def test_bibtex_has_the_papers_that_docstrings_name_each_once() -> None:
    text = export.bibtex(["paca", "paca", "adamw", "no such method"])
    (entry,) = re.findall(r"@misc\{arxiv2503\.01905,.*?\n\}", text, re.DOTALL)
    assert "title = {{PaCA: Partial Connection Adaptation for Efficient Fine-Tuning}}" in entry
    assert "eprint = {2503.01905}" in entry and entry.count("{") == entry.count("}")
    assert export.bibtex(["no such method"]) == ""
    assert "pack" not in export.uses(read(sample.result()))


@pytest.mark.slow
def test_a_picture_is_there_in_lines_and_the_same_each_time(tmp_path: Path) -> None:
    c = read(sample.bare(sample.single()))
    (tmp_path / "again").mkdir()
    plot = plots.differences(c, tmp_path)
    plots.differences(c, tmp_path / "again")
    for kind, name in plot.files:
        made = (tmp_path / name).read_bytes()
        assert made == (tmp_path / "again" / name).read_bytes(), kind
    root = Tree.fromstring((tmp_path / "difference.svg").read_text())
    words = "".join(root.itertext())
    assert "lora" in words and "worse" in words, "real text, to be edited"
    assert drawing.INK in (tmp_path / "difference.svg").read_text()
    assert (tmp_path / "difference.pdf").read_bytes().startswith(b"%PDF")
