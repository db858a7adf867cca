"""The same effort for every arm."""

import pytest

from tests.compare.tiny import spec
from trainwright.compare import tuning
from trainwright.compare.arms import ArmRecipes
from trainwright.compare.spec import Arm
from trainwright.core.errors import UserError

TWO = (
    Arm(name="full"),
    Arm(name="lora", add=({"use": "lora", "rank": 4},), search={"lr": [1e-2, 1e-1], "rank": [2, 4]}),
)


def tried(tmp_path, arm=0, **changes):
    found = spec(tmp_path, arms=TWO, **changes)
    return tuning.candidates(found, ArmRecipes(found), found.arms[arm])


def test_lists_ranges_and_around(tmp_path):
    assert tried(tmp_path, tune={"lr": [1e-2, 1e-3]}) == [{"adamw.lr": 1e-2}, {"adamw.lr": 1e-3}]
    assert tried(tmp_path, tune={"adamw.lr": {"low": 1e-4, "high": 1e-2}}, trials=3) == [
        {"adamw.lr": 1e-4},
        {"adamw.lr": 1e-3},
        {"adamw.lr": 1e-2},
    ]
    assert tried(tmp_path, tune={"beta2": {"low": 0.9, "high": 1.0, "log": False}}, trials=3) == [
        {"adamw.beta2": 0.9},
        {"adamw.beta2": 0.95},
        {"adamw.beta2": 1.0},
    ]
    assert tried(tmp_path, tune={"lr": "around"}, trials=3) == [
        {"adamw.lr": pytest.approx(1e-2 / 3, rel=1e-3)},
        {"adamw.lr": 1e-2},
        {"adamw.lr": pytest.approx(3e-2)},
    ]


def test_an_arm_may_have_a_space_of_its_own_of_the_same_size(tmp_path):
    grid = tried(tmp_path, arm=1, tune={"lr": [1e-2]})
    assert len(grid) == 4 and {"adamw.lr": 1e-1, "lora.rank": 4} in grid
    fewer = tried(tmp_path, arm=1, tune={"lr": {"low": 1e-3, "high": 1e-1}}, trials=3)
    assert len(fewer) == 3 and all(
        set(v) == {"adamw.lr", "lora.rank"} and v["lora.rank"] in (2, 4) for v in fewer
    )
    assert fewer == tried(tmp_path, arm=1, tune={"lr": {"low": 1e-3, "high": 1e-1}}, trials=3), (
        "the same points every time"
    )
    found = spec(tmp_path, arms=TWO)
    with pytest.raises(UserError, match="same tuning effort; trials are full 2, lora 4"):
        tuning.check_effort({"full": [{}, {}], "lora": [{}] * 4}, found)


def test_the_best_trial_and_the_edge(tmp_path):
    found = spec(tmp_path)
    trials = [{"values": {"adamw.lr": lr}, "metric": m} for lr, m in ((1e-4, 3.0), (1e-3, 2.5), (1e-2, None))]
    assert tuning.choose(trials, found)["values"] == {"adamw.lr": 1e-3}
    assert tuning.choose(trials[2:], found) is None
    values = [t["values"] for t in trials]
    assert tuning.edges(values, {"adamw.lr": 1e-3}) == [] and tuning.edges(values, {"adamw.lr": 1e-4}) == [
        "adamw.lr"
    ]
    one, two = {"numbers": {"loss/code": 2.0}}, {"numbers": {"loss/code": float("nan")}}
    assert tuning.score([one, one], found) == 2.0 and tuning.score([one, two], found) is None


def test_more_is_better_where_it_is(tmp_path):
    found = spec(tmp_path, metric="loss/code", better="higher")
    trials = [{"values": {"adamw.lr": lr}, "metric": m} for lr, m in ((1e-4, 3.0), (1e-3, 2.5))]
    assert tuning.choose(trials, found)["metric"] == 3.0
