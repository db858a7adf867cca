"""Coordinate-wise tuning: the minimum of a bowl is found, nothing is tried twice, and every arm has its own
settings."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.compare.tiny import comparison, fixed_costs, spec
from trainwright.compare import compare as comparing
from trainwright.compare import coordinate, tuning
from trainwright.compare.arms import ArmRecipes
from trainwright.compare.spec import Arm, load
from trainwright.core.errors import UserError
from trainwright.papers import library

AXES = {"a": [0, 1, 2, 3], "b": [0, 1, 2]}
Point = dict[str, Any]


def gone(at: Callable[[Point], float | None], start: Point, better: str = "lower",
         most: float = float("inf")) -> list[Point]:
    """The points that a search tries, in order."""
    tried: list[Point] = []

    def attempt(points: list[Point]) -> list[float | None]:
        tried.extend(points)
        return [at(p) for p in points]

    coordinate.search(AXES, start, attempt, better, most)
    return tried


def bowl(p: Point) -> float:
    """Its minimum is at a = 3, b = 1; the best a depends on b."""
    return (p["a"] - 3) ** 2 + (p["b"] - 1) ** 2 + 0.4 * (p["a"] - 3) * (p["b"] - 1)


def test_each_setting_is_tried_with_the_others_at_their_best() -> None:
    tried = gone(bowl, {"a": 1, "b": 2})
    assert tried[:4] == [{"a": 1, "b": 2}, {"a": 0, "b": 2}, {"a": 2, "b": 2}, {"a": 3, "b": 2}]
    assert tried[4:6] == [{"a": 3, "b": 0}, {"a": 3, "b": 1}]
    assert min(tried, key=bowl) == {"a": 3, "b": 1}
    assert len(tried) == len({tuple(p.values()) for p in tried}), "nothing is tried twice"
    assert tried[6:] == [{"a": a, "b": 1} for a in (0, 1, 2)], "until a round changes nothing"


def test_more_is_better_where_it_is_and_runs_that_fail_are_passed_over() -> None:
    higher = gone(lambda p: -bowl(p), {"a": 0, "b": 0}, "higher")
    assert min(higher, key=bowl) == {"a": 3, "b": 1}
    lost = gone(lambda p: None if p["a"] < 2 else bowl(p), {"a": 0, "b": 0})
    assert {"a": 3, "b": 1} in lost


def test_trials_are_a_limit() -> None:
    assert gone(bowl, {"a": 1, "b": 2}, most=5) == gone(bowl, {"a": 1, "b": 2})[:5]


ARMS = (
    Arm(name="adamw", search={"lr": [1e-3, 1e-2, 1e-1], "beta2": [0.9, 0.99]}),
    Arm(
        name="sgd",
        add=({"use": "torch_optim", "optimizer": "SGD", "lr": 0.3, "options": {"momentum": 0.5}},),
        search={"lr": [0.1, 0.3], "options.momentum": [0.0, 0.5, 0.9]},
    ),
)


def test_it_begins_with_the_arm_as_written(tmp_path: Path) -> None:
    """A value that is not in the list (the beta2 of 0.95) is that in the middle of it. Settings within
    options are meant by their path."""
    found = spec(tmp_path, arms=ARMS, search="coordinate")
    recipes = ArmRecipes(found)
    assert coordinate.first(found, recipes, found.arms[0]) == [
        {"adamw.lr": 1e-2, "adamw.beta2": 0.99},
        {"adamw.lr": 1e-3, "adamw.beta2": 0.99},
        {"adamw.lr": 1e-1, "adamw.beta2": 0.99},
        {"adamw.lr": 1e-2, "adamw.beta2": 0.9},
    ]
    second = coordinate.first(found, recipes, found.arms[1])
    assert second[0] == {"torch_optim.lr": 0.3, "torch_optim.options.momentum": 0.5} and len(second) == 4
    stage = recipes.stages(found.arms[1], {"torch_optim.options.momentum": 0.9})["adapt"]
    assert {m["use"]: m for m in stage["methods"]}["torch_optim"]["options"] == {"momentum": 0.9}
    again = recipes.stages(found.arms[1], {})["adapt"]
    assert {m["use"]: m for m in again["methods"]}["torch_optim"]["options"] == {"momentum": 0.5}, (
        "what a trial sets stays in that trial"
    )


@pytest.mark.slow
def test_a_comparison_tunes_each_arm_by_its_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing.costing, "measure", fixed_costs)
    c = comparison(tmp_path, arms=ARMS, search="coordinate", seeds=2, points=0)
    result = c.run()
    for name, keys in (
        ("adamw", {"adamw.lr", "adamw.beta2"}),
        ("sgd", {"torch_optim.lr", "torch_optim.options.momentum"}),
    ):
        trials = c.trials[name]
        assert set(c.chosen[name]) == keys and 4 <= len(trials) <= 6
        assert tuning.choose(trials, c.spec)["values"] == c.chosen[name]
    assert "one setting after another" in result["said"]["tuning"]
    assert not c.failed


def test_early_stop_is_refused(tmp_path: Path) -> None:
    c = comparison(tmp_path, arms=ARMS, search="coordinate")
    c.early_stop = True
    with pytest.raises(UserError, match='--early-stop ends trials that others beat, and search = "coord'):
        c.check()


def test_the_study_tunes_every_optimizer_by_settings_of_its_own() -> None:
    """Nine of them, each with two rates, that of the matrices of the blocks and that of all else, and each
    with as many trials as a round of its settings takes."""
    study = load(library.RECIPES / "fantastic_optimizers.toml")
    recipes, optimizers = ArmRecipes(study), set()
    for arm in study.arms:
        first = coordinate.first(study, recipes, arm)
        rates = [key for key in first[0] if key.endswith(".lr")]
        assert "adamw.lr" in rates and len(rates) == 2 and len(first[0]) > 2
        assert len(first) == study.settings.trials, "every setting is tried at every value"
        optimizers.add(arm.add[0].get("optimizer", arm.add[0]["use"]))
    assert len(optimizers) == len(study.arms) >= 8
    assert study.settings.search == "coordinate" and study.currency == "tokens"
