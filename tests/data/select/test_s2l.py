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
from trainwright.core.recipe import Recipe, parse, read
from trainwright.corpus import documents
from trainwright.corpus.selecting import amount, keep
from trainwright.corpus.tokens import open_corpus
from trainwright.data.select._panel import panel
from trainwright.data.select.s2l import S2l, quotas
from trainwright.life.jobs import jobs
from trainwright.life.run import run
from trainwright.storage.store import Store


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


@pytest.mark.slow
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


def proxy(life: Path, *models: str) -> Recipe:
    """A corpus, one run of a proxy that keeps two states, and a selection by the losses of ``models``."""
    table, _ = read(life)
    corpus, base, *_ = table["stage"]
    chosen = {"name": "chosen", "kind": "corpus", "from": {"data": "corpus", "models": list(models)},
              "methods": [{"use": "s2l", "clusters": 4, "share": 0.5, "length": 32}]}
    stages = [corpus, base | {"name": "proxy", "steps": 8, "snapshots": [0.25, 0.5]}, chosen]
    return parse({"seed": 3, "stage": stages}, life)


@pytest.mark.slow
def test_the_trajectories_are_those_of_one_run(life: Path, tmp_path: Path) -> None:
    names = ("proxy@0.25", "proxy@0.5", "proxy")
    store = Store(life.parent / "store")
    assert [s.name for s in jobs(proxy(life, *names), store)[-1].inputs["models"]] == list(names)
    made = run(proxy(life, *names), store)
    folders = [made["proxy"].path / "snapshots" / "0.25", made["proxy"].path / "snapshots" / "0.5",
               made["proxy"].path]
    by_hand = S2l(clusters=4, share=0.5, length=32)
    rows = documents.parquet(sorted((made["corpus"].path / "documents").glob("*.parquet")))
    seen = panel(rows, context(tmp_path / "s", models=folders), "s2l", "", 32, by_hand.batch_tokens)
    assert (np.diff(seen.loss.mean(0)) < 0).all(), "each state has learned more than the one before it"
    ids = set(map(str, open_corpus(made["chosen"].path).select("train").id))
    there = set(map(str, open_corpus(made["corpus"].path).select("train").id))
    assert ids < there and len(ids) == amount(len(there), None, 0.5, "s2l")
    mine = context(tmp_path / "t", models=folders)
    mine.seed = 3
    assert set(kept(by_hand.apply(keep(rows, sorted(there)), mine))) == ids
    for models, sentence in (
        ((*names, "proxy@0.3"), "'proxy' keeps the snapshots proxy@0.25, proxy@0.5"),
        ((*names, "corpus"), r"from\.models must be a model; 'corpus' is of kind corpus"),
    ):
        with pytest.raises(UserError, match=sentence):
            jobs(proxy(life, *models), store)


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
