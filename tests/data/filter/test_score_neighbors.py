"""Distances to neighbours, against scikit-learn's."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from tests.data.frames import frame, told
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.data.filter import score_neighbors
from trainwright.data.filter.score_neighbors import ScoreNeighbors, distances


@pytest.mark.parametrize("neighbor", [1, 6])
def test_against_an_independent_search(neighbor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_neighbors, "BLOCK", 17)
    places = np.random.default_rng(0).normal(size=(60, 5)) + 1e4
    places[7] = places[3]
    wanted = NearestNeighbors(n_neighbors=neighbor + 1).fit(places).kneighbors(places)[0][:, neighbor]
    np.testing.assert_allclose(distances(places, neighbor), wanted, rtol=1e-6, atol=1e-9)
    assert distances(places, 1)[7] == 0.0, "a copy"


def test_the_column_and_its_unit(tmp_path: Path) -> None:
    rows = frame([{"id": str(i)} for i in range(4)],
                 embedding=[[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], None])
    ctx = Context(folder=tmp_path)
    made = told(ScoreNeighbors(neighbor=1).apply(rows, ctx))
    assert [made[str(i)]["knn"] for i in range(4)] == [2.0, 2.0, pytest.approx(5 ** 0.5), None]
    made = told(ScoreNeighbors(neighbor=1, unit=True, column="near").apply(rows, ctx))
    assert [made[str(i)]["near"] for i in range(4)] == [0.0, 0.0, pytest.approx(2 ** 0.5), None]
    with pytest.raises(UserError, match="3 documents with an embedding have no neighbor = 3"):
        ScoreNeighbors(neighbor=3).apply(rows, ctx)
