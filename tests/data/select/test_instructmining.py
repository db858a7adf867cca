"""InstructMining: the rule that makes the losses of tuned models is found again, and the documents that it
favours are kept."""
from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.corpus.corpora import Given, build
from tests.data.filter.test_score_evol import talk
from tests.data.frames import frame
from tests.data.unigrams import context, kept, written
from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus import documents
from trainwright.data.filter.embed import Embed
from trainwright.data.filter.score_answers import ScoreAnswers
from trainwright.data.filter.score_neighbors import ScoreNeighbors
from trainwright.data.filter.score_perplexity import ScorePerplexity
from trainwright.data.filter.score_reward import ScoreReward
from trainwright.data.filter.score_wording import ScoreWording
from trainwright.data.select import instructmining
from trainwright.data.select.instructmining import Instructmining, between, draw, fit, grid

RULE = {"reward": -0.15, "near": 0.9}


def rows(**columns: Sequence[float | None]) -> Any:
    """A document for each entry, with these columns."""
    import daft
    import pyarrow as pa
    made = written("x", "abc", len(next(iter(columns.values()))))
    told = pa.table({"id": pa.array([one["id"] for one in made], pa.large_string())} | columns)
    return Given(rows=tuple(made)).apply(documents.empty(),
                                         Context()).join(daft.from_arrow(told), on="id", how="left")


def planted(many: int = 100) -> dict[str, list[float]]:
    random = np.random.default_rng(0)
    return {"reward": random.normal(2.0, 1.0, many).tolist(), "near": random.uniform(0, 1, many).tolist()}


def predicted(columns: dict[str, list[float]]) -> np.ndarray:
    return sum(np.array(columns[name]) * b for name, b in RULE.items())  # type: ignore[return-value]


def test_the_fit_recovers_planted_coefficients() -> None:
    random = np.random.default_rng(1)
    means = random.normal(size=(25, 3)) * [1.0, 50.0, 0.01] + [0.0, 400.0, 0.5]
    true = np.array([-0.15, 8e-4, -9.0])
    exact, r2 = fit(["a", "b", "c"], means, 1.07 + means @ true, "test")
    np.testing.assert_allclose(exact, true, rtol=1e-9)
    assert r2 == pytest.approx(1.0)
    noise = random.normal(scale=0.02, size=25)
    rough, r2 = fit(["a", "b", "c"], means, 1.07 + means @ true + noise, "test")
    np.testing.assert_allclose(rough, true, rtol=0.2)
    assert 0.9 < r2 < 1
    assert fit(["a", "b", "c"], means, noise,
               "test")[1] < 0.2, "where nothing depends on them, the rule says nothing of new runs"


def test_subsets_lie_far_apart() -> None:
    import torch
    values = np.random.default_rng(0).normal(size=(400, 2))
    drawn = [draw(values, 40, torch.Generator().manual_seed(i)) for i in range(30)]
    assert all(len(set(one.tolist())) == 40 for one in drawn)
    spread = np.stack([values[one].mean(0) for one in drawn]).std(0)
    assert (spread > 4 / math.sqrt(40)).all(), "four times further than random subsets, in each indicator"


def test_the_method_finds_the_rule_and_keeps_what_it_favours(tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    columns, calls = planted(), []

    def loss(reader: Any, training: Sequence[Any], *rest: Any) -> float:
        calls.append(len(training))
        told = predicted(columns)[[int(d.id.split("/")[1]) for d in training]]
        return math.exp(1.0 + told.mean())

    monkeypatch.setattr(instructmining, "tuned_loss", loss)
    ctx = tiny.curating(tmp_path)
    method = Instructmining(indicators=("reward", "near"), subsets=6, size=10, count=20)
    made = method.apply(rows(**columns), ctx)
    order = np.argsort(predicted(columns))[:20]
    assert kept(made) == sorted(f"x/{i:03d}" for i in order)
    assert calls == [10] * 6
    for name, true in (RULE | {"r2": 1.0}).items():
        assert ctx.notes[f"instructmining/{name}"][0][0] == pytest.approx(true)
    assert kept(method.apply(rows(**columns),
                             ctx)) == kept(made) and len(calls) == 6, "what was tuned is not tuned again"
    given = Instructmining(rule=RULE, count=20).apply(rows(**columns), context(tmp_path / "given"))
    assert kept(given) == kept(made) and len(calls) == 6, "a rule that is given needs no model"
    assert {r["id"]: pytest.approx(r["instructmining"]) for r in given.to_pylist()} == \
        {r["id"]: r["instructmining"] for r in made.to_pylist()}


@pytest.mark.parametrize("best", [60, 8, 11, 100])
def test_the_number_of_documents_is_searched_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                 best: int) -> None:
    """Where the loss has one minimum in the size, half the trials find its neighbourhood and the rest it."""
    columns, calls = planted(), []

    def loss(reader: Any, training: Sequence[Any], *rest: Any) -> float:
        calls.append(sorted(d.id for d in training))
        return 1.0 + abs(math.log(len(training) / best))

    monkeypatch.setattr(instructmining, "tuned_loss", loss)
    ctx = tiny.curating(tmp_path)
    made = kept(Instructmining(rule=RULE, trials=12, smallest=8).apply(rows(**columns), ctx))
    assert len(calls) <= 12 and abs(math.log(len(made) / best)) < 0.1
    assert ctx.notes["instructmining/size"] == [(float(len(made)), 1.0)]
    order = [f"x/{i:03d}" for i in np.argsort(predicted(columns))]
    assert all(one == sorted(order[:len(one)]) for one in calls) and made == sorted(order[:len(made)])


def test_sizes_by_hand() -> None:
    assert grid(1, 100, 3) == (1, 10, 100) and grid(50, 20, 3) == (20,)
    assert between({1: 3.0, 10: 1.0, 100: 2.0}, 2) == (3, 32)
    assert between({1: 1.0, 4: 2.0}, 1) == (2,) and between({4: 2.0}, 3) == ()


@pytest.mark.slow
def test_a_model_scores_and_the_rule_selects(tmp_path: Path) -> None:
    """The paper's indicators, written by the methods that this one names, are columns that it reads."""
    ctx = tiny.curating(tmp_path)
    names = ("instruction_length", "response_length", "mtld", "knn", "reward", "naturalness", "perplexity")
    made = [{"id": str(i), "messages": talk(f"apples {i}", "two and rain " * (1 + i % 3))} for i in range(12)]
    table = frame(made)
    for number, how in enumerate((ScoreWording(), Embed(length=32), ScoreNeighbors(),
                                  ScoreReward(question="{response}", length=48),
                                  ScoreAnswers(questions={"naturalness": "{response}"}, length=48),
                                  ScorePerplexity(length=32))):
        ctx.folder = tmp_path / str(number)
        ctx.folder.mkdir()
        table = how.apply(table, ctx)
    ctx.folder = tmp_path / "last"
    ctx.folder.mkdir()
    chosen = Instructmining(rule=dict.fromkeys(names, 1.0), count=5).apply(table, ctx)
    assert len(kept(chosen)) == 5 and {"mtld", "knn", "instructmining"} <= set(chosen.column_names)


@pytest.mark.slow
def test_models_that_are_tuned_tell_good_documents_from_bad_ones(tmp_path: Path) -> None:
    build(tmp_path / "target", written("target", "abcde", 12), tune=0.5)
    made = written("good", "abcde", 30) + written("bad", "KLMNO", 30)
    good = {"good": [float(one["domain"] == "good") for one in made]}
    table = rows(**good).exclude("text", "domain", "messages")
    import daft
    import pyarrow as pa
    texts = pa.table({"id": [f"x/{i:03d}" for i in range(60)], "text": [one["text"] for one in made],
                      "domain": ["d"] * 60,
                      "messages": pa.nulls(60, pa.large_string())})
    ctx = context(tmp_path / "s", model=tiny.curating(tmp_path).inputs["model"], target=[tmp_path / "target"])
    method = Instructmining(indicators=("good",), subsets=5, size=12, lr=3e-3, count=30, length=32,
                            batch_tokens=64)
    chosen = kept(method.apply(table.join(daft.from_arrow(texts), on="id"), ctx))
    assert ctx.notes["instructmining/good"][0][0] < 0 and ctx.notes["instructmining/r2"][0][0] > 0.5
    assert chosen == [f"x/{i:03d}" for i in range(30)]


def test_length_is_an_indicator_that_needs_no_column(tmp_path: Path) -> None:
    texts = [{"id": str(i), "text": "a" * n} for i, n in enumerate((5, 1, 9, 3))]
    table = Given(rows=tuple(texts)).apply(documents.empty(), Context())
    assert kept(Instructmining(rule={"length": 1.0},
                               count=2).apply(table, context(tmp_path / "s"))) == ["1", "3"]


def test_mistakes_get_a_sentence(tmp_path: Path) -> None:
    ctx, columns = tiny.curating(tmp_path), planted(40)
    columns["far"] = [1 - 2 * x for x in columns["near"]]
    columns["same"] = [3.0] * 40
    table = rows(**columns)
    for indicators, told in ((("reward", "absent"), "'absent'"), (("near", "far"), "move together"),
                             (("same",), "same mean")):
        with pytest.raises(UserError, match=told):
            Instructmining(indicators=indicators, subsets=4, size=8, target=4, length=16).apply(table, ctx)
    with pytest.raises(UserError, match="size = 41 is more than the 40 documents"):
        Instructmining(indicators=("near",), size=41).apply(table, ctx)
    for wrong, told in (({}, "either indicators"),
                        ({"rule": RULE, "indicators": ("near",)}, "either indicators"),
                        ({"indicators": ("a", "b"), "subsets": 3}, "subsets must be 4"),
                        ({"rule": RULE, "trials": 4, "count": 3}, "trials"),
                        ({"rule": RULE, "trials": 1}, "2 and more")):
        with pytest.raises(ValueError, match=told):
            Instructmining(**wrong)


def test_documents_without_an_indicator_are_left_out(tmp_path: Path) -> None:
    made = Instructmining(rule={"reward": 1.0},
                          share=1.0).apply(rows(reward=[1.0, None, 2.0]), context(tmp_path / "s"))
    assert kept(made) == ["x/000", "x/002"]
    with pytest.raises(UserError, match="the first 'x/001'"):
        Instructmining(rule={"reward": 1.0}).apply(rows(reward=[1.0, float("nan")]), context(tmp_path / "t"))
    with pytest.raises(UserError, match="no finite number"):
        Instructmining(rule={"reward": 1.0}).apply(rows(reward=[1.0, float("inf")]), context(tmp_path / "u"))
