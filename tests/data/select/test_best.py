from __future__ import annotations

from pathlib import Path

from tests.corpus.test_selecting import rows, table
from trainwright.core.context import Context
from trainwright.data.select.best import Best

SCORES = [2.0, None, 3.0, 3.0, 3.0, 1.0]


def kept(folder: Path, **settings: object) -> list[str]:
    method = Best(column="score", **settings)  # type: ignore[arg-type]
    return sorted(r["id"]
                  for r in rows(method.apply(table(score=SCORES), Context(folder=folder / str(settings)))))


def test_the_highest_the_lowest_and_ties_by_id(tmp_path: Path) -> None:
    assert kept(tmp_path, count=2) == ["d2", "d3"]
    assert kept(tmp_path, count=2, lowest=True) == ["d0", "d5"]
    assert kept(tmp_path, share=1.0) == ["d0", "d2", "d3", "d4", "d5"], "what has no score is never kept"
