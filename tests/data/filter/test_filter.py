from __future__ import annotations

from pathlib import Path

import pytest

from tests.corpus.test_selecting import rows, table
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.data.filter.filter import Filter

SCORES = [1.0, None, 3.0, 4.0, 5.0, 6.0]


def kept(where: str) -> list[str]:
    return [r["id"] for r in rows(Filter(where=where).apply(table(score=SCORES), Context()))]


def test_conditions_by_hand(tmp_path: Path) -> None:
    assert kept("score >= 4 AND id <> 'd4'") == ["d3", "d5"]
    assert kept("score < 100") == ["d0", "d2", "d3", "d4", "d5"], "a document without a score is dropped"
    assert kept("characters = 2") == [f"d{i}" for i in range(6)]
    assert "characters" not in rows(Filter(where="characters > 0").apply(table(), Context()))[0]


@pytest.mark.parametrize("where", ["scored > 1", "score >", "score + 1"])
def test_a_condition_that_is_none_is_told(where: str) -> None:
    with pytest.raises(UserError, match=r"filter: where = .* is no condition on id, text"):
        kept(where)
