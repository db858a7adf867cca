"""S2L: small clusters of trajectories are taken whole, the large ones alike, and the budget is met
exactly."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.corpus.corpora import Given
from tests.data.unigrams import checkpoint, context, kept, written
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus import documents
from trainwright.data.select.s2l import S2l, quotas


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A proxy that learns the letters ``abc`` early and ``def`` late, and ends with one loss on both."""
    shares: list[dict[str, float]] = [{}, {"abc": 0.6}, {"abc": 0.4, "def": 0.4}]
    return [checkpoint(tmp_path_factory.mktemp("s2l") / str(i), one) for i, one in enumerate(shares)]


def rows() -> Any:
    made = written("early", "abc", 60) + written("late", "def", 20) + written("never", "rst", 3)
    return Given(rows=tuple(made)).apply(documents.empty(), Context())


def by_kind(ids: list[str]) -> list[int]:
    return [sum(name.startswith(kind) for name in ids) for kind in ("early", "late", "never")]


def test_small_groups_are_taken_whole_and_the_others_share_what_is_left() -> None:
    assert quotas(np.array([30, 2, 10]), 18).tolist() == [8, 2, 8]
    assert quotas(np.array([5, 5, 5]), 10).tolist() == [3, 3, 4]
    draw = np.random.default_rng(0)
    for _ in range(200):
        sizes = draw.integers(1, 40, size=draw.integers(1, 12))
        budget = int(draw.integers(1, sizes.sum() + 1))
        taken = quotas(sizes, budget)
        assert taken.sum() == budget and (taken <= sizes).all()
        whole = taken == sizes
        assert whole.all() or taken[~whole].max() - taken[~whole].min() <= 1
        assert whole.all() or not whole.any() or sizes[whole].max() <= taken[~whole].max()


def test_clusters_are_those_of_trajectories(tmp_path: Path, checkpoints: list[Path]) -> None:
    ctx = context(tmp_path / "s", models=checkpoints)
    chosen = kept(S2l(clusters=3, count=23).apply(rows(), ctx))
    assert by_kind(chosen) == [10, 10, 3], "early and late end with one loss, and are still two clusters"
    again = kept(S2l(clusters=3, count=23).apply(rows(), context(tmp_path / "t", models=checkpoints)))
    assert again == chosen
    last = kept(S2l(clusters=3, count=23).apply(rows(), context(tmp_path / "u", models=[checkpoints[2]] * 2)))
    assert by_kind(last)[2] == 3
    assert by_kind(last)[:2] != [10, 10], "the last loss alone cannot tell them apart"


def test_the_budget_is_split_over_domains_first(tmp_path: Path, checkpoints: list[Path]) -> None:
    ctx = context(tmp_path / "s", models=checkpoints)
    assert by_kind(kept(S2l(clusters=50, count=43, by_domain=True).apply(rows(), ctx))) == [20, 20, 3]


def test_mistakes_get_a_sentence(tmp_path: Path, checkpoints: list[Path]) -> None:
    with pytest.raises(UserError, match=r"losses of two models and more.*order of training; it has 1"):
        S2l().apply(rows(), context(tmp_path / "s", models=checkpoints[:1]))
    with pytest.raises(UserError, match="count = 84 is more than the 83 documents"):
        S2l(count=84).apply(rows(), context(tmp_path / "t", models=checkpoints))
    with pytest.raises(ValueError, match="clusters"):
        S2l(clusters=0)


def test_a_model_that_went_wrong_is_named(tmp_path: Path, checkpoints: list[Path]) -> None:
    from trainwright import families
    broken = families.load(checkpoints[0], "test")
    broken.lm_head.weight.data.fill_(float("nan"))
    (tmp_path / "broken").mkdir()
    families.save(broken, tmp_path / "broken", families.load_tokenizer(checkpoints[0], "test"))
    with pytest.raises(UserError, match="broken has no number as its loss"):
        S2l().apply(rows(), context(tmp_path / "s", models=[checkpoints[0], tmp_path / "broken"]))
