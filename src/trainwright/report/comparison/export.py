"""What can be taken along from a comparison: pictures as PNG, SVG and PDF, tables as CSV and LaTeX, papers as
BibTeX. They lie beside the page."""
from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from trainwright.core import registry
from trainwright.core.files import write_text
from trainwright.core.shown import plain
from trainwright.report import plots
from trainwright.report.comparison.numbers import Arm, Result, cell, shown, words
from trainwright.report.numbers import NONE, quantity

FORMATS = ("png", "svg", "pdf")
COLUMNS = ("arm", "baseline", "metric", "better", "n", "arm_mean", "baseline_mean", "difference", "low",
           "high", "p", "p_holm", "verdict", "detectable", "caveats")
"""Of ``comparisons.csv``."""
COSTS = ("seconds_per_step", "peak_memory_bytes", "trainable_parameters")
"""Columns of the LaTeX table behind the answer."""
PAPER = re.compile(r'"([^"]+)"[^"()]*\((?:[^()]*,\s)?arXiv:?\s?(\d{4}\.\d{4,5})')
"""A title and its number, as docstrings name a paper."""
LETTERS = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
           "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "×": r"$\times$",
           "…": r"\dots{}", "–": "--"}
"""What LaTeX would take for something else, or has no letter for."""


def picture(figure: Figure, out: Path, name: str) -> str:
    """A figure as ``NAME.png``, and in lines beside it; returns the name of the PNG."""
    plots.png(figure, out / f"{name}.png")
    settings = plots.RC | {"svg.hashsalt": name, "pdf.fonttype": 42}
    nothing = {"svg": dict.fromkeys(("Date", "Creator", "Format", "Type")),
               "pdf": dict.fromkeys(("CreationDate", "Creator", "Producer"))}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        for kind, metadata in nothing.items():
            figure.savefig(out / f"{name}.{kind}", facecolor="white", metadata=metadata)
    return f"{name}.png"


def tables(c: Result, out: Path) -> list[tuple[str, str]]:
    """Write all tables; returns the name of each file and what is in it."""
    found = [("comparisons.csv", "every difference"), ("runs.csv", "every run"), ("table.tex", "the answer")]
    _csv(out / "comparisons.csv", COLUMNS, _comparisons(c))
    _csv(out / "runs.csv", ("arm", "seed", "metric", "value"), _runs(c))
    write_text(out / "table.tex", latex(c))
    if papers := bibtex(uses(c)):
        write_text(out / "papers.bib", papers)
        found.append(("papers.bib", "the papers of the methods"))
    return found


def _csv(file: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)


def _comparisons(c: Result) -> Iterable[list[Any]]:
    for a in c.others:
        for one in a.compared.values():
            more = {"n": len(one.get("values") or ()), "caveats": "; ".join(a.caveats)}
            yield [(one | more).get(k) for k in COLUMNS]


def _runs(c: Result) -> Iterable[list[Any]]:
    for a in c.arms:
        for run in a.runs:
            yield from ([a.name, run["seed"], metric, x] for metric, x in run["metrics"].items())


def latex(c: Result) -> str:
    """The answer as a table of the package booktabs, its caveats below."""
    costs = shown(c, COSTS)
    heads = ["", words(c.metric), "difference", r"95 % interval", "verdict", *(words(m) for m in costs)]
    lines = [f"% {one}" for one in (plain(str(c.json["title"])), "needs \\usepackage{booktabs}")]
    lines += [rf"\begin{{tabular}}{{l{'r' * 3}l{'r' * len(costs)}}}", r"\toprule", _line(heads), r"\midrule"]
    marks, notes = 0, []
    for a in c.arms:
        name = escaped(a.name)
        if a.caveats:
            marks += 1
            name += rf"\textsuperscript{{{marks}}}"
            notes.append(rf"\textsuperscript{{{marks}}}{escaped('; '.join(a.caveats))}.")
        lines.append(_line([name, *map(escaped, _cells(c, a, costs))], raw=True))
    lines += [r"\bottomrule", r"\end{tabular}"]
    if notes:
        lines += [rf"\par\smallskip\footnotesize {' '.join(notes)}"]
    return "\n".join(line.replace("\n", " ") for line in lines) + "\n"


def _cells(c: Result, a: Arm, costs: Sequence[str]) -> list[str]:
    difference, interval = ("", "") if a.baseline else a.difference(c.metric)
    return [quantity(c.metric, a.mean(c.metric)), difference, interval, a.standing(c.metric),
            *(cell(c, a, m) for m in costs)]


def _line(cells: Sequence[str], raw: bool = False) -> str:
    return " & ".join(x if raw else escaped(x) for x in cells) + r" \\"


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(LETTERS.get(letter, letter) for letter in text.replace(NONE, "–"))


def uses(c: Result) -> list[str]:
    """Every method of the compared stage that any arm has."""
    methods = (m for a in c.arms for m in a.json["stage"].get("methods") or ())
    return list(dict.fromkeys(str(m["use"]) for m in methods if isinstance(m, dict) and "use" in m))


def bibtex(methods: Iterable[str]) -> str:
    """The papers that the docstrings of methods name, each once; those that are not installed have none."""
    found: dict[str, tuple[str, list[str]]] = {}
    for name in methods:
        card = registry.cards().get(name)
        for title, number in PAPER.findall(card.doc) if card else ():
            found.setdefault(number, (" ".join(title.split()), []))[1].append(name)
    return "\n".join(
        f"@misc{{arxiv{number},\n  title = {{{{{escaped(title)}}}}},\n  eprint = {{{number}}},\n"
        f"  archivePrefix = {{arXiv}},\n  url = {{https://arxiv.org/abs/{number}}},\n"
        f"  note = {{{escaped(', '.join(names))} in Trainwright}}\n}}\n"
        for number, (title, names) in found.items())
