from __future__ import annotations

from pathlib import Path

from rich.console import Console

from tests.corpus.corpora import KeepLong, build, texts
from trainwright.report import curated, plots


def test_counts_and_plot_of_a_selection(tmp_path: Path) -> None:
    rows = [*texts(30, "a"), *texts(20, "b"), {"id": "short", "text": "x", "domain": "b"}]
    figures = build(tmp_path / "c", rows, KeepLong(least=2))
    assert figures["kept"]["domains"] == {"a": [30, 30], "b": [21, 20]}
    assert sum(figures["kept"]["lengths"]["all"]) == 51 and sum(figures["kept"]["lengths"]["kept"]) == 50
    assert curated.selects(figures) and curated.label(figures) == "50 of 51 documents were kept."
    console = Console(width=80, record=True)
    console.print(curated.table(figures))
    said = console.export_text()
    assert "keep_long" in said and "51" in said and "50" in said
    drawn = plots.svg(curated.figure(figures), "selected", "what was kept")
    assert "all of 30" in drawn and "95% of 21" in drawn


def test_nothing_is_drawn_where_nothing_was_dropped(tmp_path: Path) -> None:
    assert not curated.selects(build(tmp_path / "c", texts(10))) and not curated.selects({})


def test_many_domains_are_summed_up() -> None:
    found = curated.fewer({f"d{i:02d}": (100 - i, i) for i in range(20)})
    assert len(found) == curated.MOST and found["9 others"] == (
        sum(100 - i for i in range(11, 20)),
        sum(range(11, 20)),
    )
