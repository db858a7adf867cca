"""PreSelect: documents whose losses reproduce the ranking of models come first, those that no model read
among them."""
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
from trainwright.data.select.preselect import Preselect, examples, strength

TELLING, SILENT = "abcdefghi", "rstuvwxyz"


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models, the best first: the better, the lower the loss on some letters, and the higher on all
    others."""
    return [checkpoint(tmp_path_factory.mktemp("ranked") / "m", {TELLING: share})
            for share in (0.9, 0.7, 0.5)]


def rows() -> Any:
    made = written("telling", TELLING,
                   40) + written("silent", SILENT, 60) + [{"id": "blank", "text": " \n ", "domain": "silent"}]
    return Given(rows=tuple(made)).apply(documents.empty(), Context())


def test_strength_counts_the_pairs_of_models_that_are_in_order() -> None:
    nats = np.array([[1.0, 2, 3], [3, 2, 1], [2, 1, 3], [2, 2, 2], [1, 3, 2]])
    assert strength(nats).tolist() == [3, 0, 2, 0, 2], "a tie is no agreement"
    assert strength(np.arange(6.0)[None]).tolist() == [15]


def test_counterexamples_come_from_the_bottom() -> None:
    agreeing = np.array([3, 0, 2, 3, 1, 2, 2])
    wanted, unwanted = examples(agreeing, np.arange(7) / 7)
    assert wanted.tolist() == [0, 3] and unwanted.tolist() == [1, 4]
    many, few = examples(np.array([3, 3, 3, 0]), np.array([0.2, 0.1, 0.3, 0.4]))
    assert many.tolist() == [1] and few.tolist() == [3], "as many of the one as of the other"
    with pytest.raises(UserError, match="all 2 documents that the models read agree with 3 pairs"):
        examples(np.array([3, 3]), np.zeros(2))


@pytest.mark.slow
def test_planted_documents_come_first(tmp_path: Path, ranked: list[Path]) -> None:
    ctx = context(tmp_path / "s", models=ranked)
    made = Preselect(share=0.2, sample=50).apply(rows(), ctx).to_pylist()
    characters = {r["id"]: len(r["text"]) for r in rows().to_pylist() if r["text"].strip()}
    assert all(r["id"].startswith("telling") and r["preselect"] > 0.5 for r in made)
    assert 0.18 * sum(characters.values()) < sum(characters[r["id"]]
                                                 for r in made) <= 0.2 * sum(characters.values())
    assert ctx.notes["preselect/accuracy"] == [(1.0, 1.0)]
    whole = Preselect(share=1.0, sample=50).apply(rows(), context(tmp_path / "t", models=ranked)).to_pylist()
    chance = {r["id"]: r["preselect"] for r in whole}
    assert len(chance) == 100 and "blank" not in chance
    telling, silent = ([p for n, p in chance.items() if n.startswith(kind)] for kind in ("telling", "silent"))
    assert min(telling) > max(silent)


@pytest.mark.slow
def test_the_best_model_may_stand_last(tmp_path: Path, ranked: list[Path]) -> None:
    last = kept(Preselect(share=0.3, sample=30,
                          best="last").apply(rows(), context(tmp_path / "t", models=ranked[::-1])))
    assert last and all(name.startswith("telling") for name in last)
    upside_down = kept(Preselect(share=0.3, sample=30,
                                 best="last").apply(rows(), context(tmp_path / "u", models=ranked)))
    assert upside_down and not any(name.startswith("telling") for name in upside_down)


def test_models_of_one_ability_are_refused(tmp_path: Path, ranked: list[Path]) -> None:
    with pytest.raises(UserError, match="agree with 0 pairs of their ranking"):
        Preselect().apply(rows(), context(tmp_path / "s", models=[ranked[0], ranked[0]]))
    with pytest.raises(UserError, match="the best one first; it has 0"):
        Preselect().apply(rows(), context(tmp_path / "t"))
    with pytest.raises(ValueError, match="share must be above 0"):
        Preselect(share=0.0)
