"""Averages by hand, the interval of a rank correlation, and proxies that rank mixtures as training does."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.corpus.corpora import build
from trainwright import families
from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make
from trainwright.corpus.tokens import open_corpus
from trainwright.search.modular_data_ablation import ModularDataAblation, averaged, rank_correlation

NEAR = {"p0": 0.0, "p1": 0.25, "p2": 0.5, "p3": 0.75, "p4": 1.0}
"""Of each part the share of words that the target has, too."""
TARGET = ["river", "stone", "cloud", "grass", "light", "water", "field", "morning"]
OTHER = ["error", "stack", "queue", "table", "index", "value", "token", "buffer"]
SETTINGS: dict[str, Any] = {
    "field": "source",
    "tokens": 700,
    "domains": ("target",),
    "measured": 600,
    "length": 32,
    "lr": 5e-3,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five sources, more or less like the target, which is too small to be a part."""
    draw, rows = np.random.default_rng(0), []
    for source, near in (NEAR | {"target": 1.0}).items():
        for i in range(90 if source in NEAR else 30):
            words = [draw.choice(TARGET if draw.random() < near else OTHER) for _ in range(14)]
            rows.append(
                {
                    "id": f"{source}/{i}",
                    "text": " ".join(words),
                    "source": source,
                    "domain": "parts" if source in NEAR else "target",
                }
            )
    place = tmp_path_factory.mktemp("ablation") / "corpus"
    build(place, rows, tune=0.3, test=0.0)
    return place


def model_of(folder: Path, seed: int = 0) -> nn.Module:
    table = {"type": "llama", **tiny.SHAPES["llama"]}
    return families.create(families.from_table(table, open_corpus(folder).tokenizer, "here"), seed, "here")


def context(folder: Path, seed: int = 0) -> Context:
    return Context(inputs={"data": [folder]}, seed=seed)


def test_averages_by_hand() -> None:
    half = {"w": torch.tensor([1.0, 2.0]).bfloat16()}, {"w": torch.tensor([2.0, 4.0]).bfloat16()}
    assert averaged(half)["w"].tolist() == [1.5, 3.0] and averaged(half)["w"].dtype == torch.bfloat16


def test_the_interval_by_hand() -> None:
    """Ranks 1 2 3 4 5 and 2 1 3 4 5: rho = 1 - 6 x 2 / (5 x 24) = 0.9."""
    rho, low, high = rank_correlation([1.0, 2.0, 3.0, 4.0, 50.0], [2.0, 1.0, 3.0, 4.0, 5.0])
    spread = 1.96 * math.sqrt((1 + 0.81 / 2) / 2)
    assert rho == pytest.approx(0.9)
    assert (low, high) == pytest.approx(
        (math.tanh(math.atanh(0.9) - spread), math.tanh(math.atanh(0.9) + spread))
    )
    assert rank_correlation([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == (pytest.approx(1.0), -1.0, 1.0)
    assert rank_correlation([1.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0]) == (0.0, -1.0, 1.0)


def test_parts_are_of_one_size(folder: Path) -> None:
    parts = ModularDataAblation(**SETTINGS).parted(context(folder))
    assert list(parts) == list(NEAR)
    assert all(int((found.length - 1).sum()) == 700 for found in parts.values())
    train = set(open_corpus(folder).select("train").id)
    assert all(set(found.id) <= train and all(name in i for i in found.id) for name, found in parts.items())


@pytest.mark.slow
def test_proxies_rank_mixtures_as_training_does(folder: Path) -> None:
    """Ten mixtures of two of five parts: the rank correlation and its interval, and the seed model as it
    was."""
    model = model_of(folder)
    before = copy.deepcopy(model.state_dict())
    told = ModularDataAblation(**SETTINGS).measure(model, context(folder))
    proxies, trained = (
        {n.partition("/")[2]: v for n, v in told.items() if n.startswith(f"{what}/")}
        for what in ("proxy", "trained")
    )
    best = sorted(trained, key=trained.__getitem__)
    assert len(proxies) == len(trained) == 10 and min(proxies, key=proxies.__getitem__) in best[:5]
    assert told["rank_correlation"] > 0.6 and told["rank_correlation_low"] > 0.0
    assert told["rank_correlation_low"] < told["rank_correlation"] < told["rank_correlation_high"] <= 1.0
    assert np.mean(list(proxies.values())) > np.mean(list(trained.values())), (
        "a proxy is higher than training"
    )
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_without_verification_nothing_is_trained_on_mixtures(folder: Path) -> None:
    some = {"parts": 3, "tokens": 200, "measured": 100}
    told, whole = (
        ModularDataAblation(**SETTINGS | some, verify=v).measure(model_of(folder), context(folder))
        for v in (False, True)
    )
    assert len(told) == 3 and len(whole) == 10
    assert told == {n: v for n, v in whole.items() if n.startswith("proxy/")}


def test_mistakes_are_said(folder: Path) -> None:
    for name, settings in (("parts", {"parts": 2}), ("tokens", {"tokens": 0}), ("size", {"size": 0})):
        with pytest.raises(UserError, match=name):
            make(ModularDataAblation, settings, "here")
    with pytest.raises(UserError, match="0 parts by 'source' have 100,000 tokens"):
        ModularDataAblation(**SETTINGS | {"tokens": 100_000}).parted(context(folder))
    with pytest.raises(UserError, match="no document of the corpus says 'year'"):
        ModularDataAblation(**SETTINGS | {"field": "year"}).parted(context(folder))
    changed = model_of(folder)
    changed.extra = nn.Linear(2, 2)  # type: ignore[assignment]
    with pytest.raises(UserError, match="in an evaluate stage"):
        ModularDataAblation(**SETTINGS).measure(changed, context(folder))
