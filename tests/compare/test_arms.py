"""What an arm changes: a method of several kinds takes the place of each that a stage has only one of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.compare import tiny
from trainwright.compare import caveats, tuning
from trainwright.compare.arms import ALONE, ArmRecipes, Length
from trainwright.compare.spec import Arm, parse_arm
from trainwright.core import registry
from trainwright.core.errors import UserError

MINE = '''"""An optimizer of one's own."""
from trainwright.core.method import Optimizer, Surgery


class Mine(Surgery, Optimizer):
    """An optimizer of one's own."""

    def operate(self, model, ctx):
        return None
'''


def methods(folder: Path, *arms: str | Arm, stage: str = "adapt", **changes: Any) -> list[list[str]]:
    """What the stage of each arm uses."""
    parsed = tuple(parse_arm(a) if isinstance(a, str) else a for a in arms)
    found = tiny.spec(folder, parsed, stage=stage, **changes)
    return [[m["use"] for m in ArmRecipes(found).stages(a, {})[stage]["methods"]] for a in found.arms]


def test_a_surgery_that_is_an_optimizer_takes_the_optimizer_s_place(tmp_path: Path) -> None:
    full, sparse = methods(tmp_path, "full:", "sp: spiel")
    assert full == ["pack", "next_token", "adamw", "held_out"] and sparse == [
        "pack",
        "next_token",
        "spiel",
        "held_out",
    ]


def test_each_kind_that_a_stage_has_one_of_is_told_by_the_cards(tmp_path: Path) -> None:
    """The rule knows no method by name: whatever is an optimizer, by any of its bases, displaces ``adamw``,
    and nothing else does."""
    trains = [
        n
        for n, c in registry.cards().items()
        if any(map(c.is_a, ("Surgery", "Update", "Controller", "Weigh")))
    ]
    arms = [Arm(name=n, add=({"use": n},)) for n in trains]
    for name, used in zip(trains, methods(tmp_path, *arms), strict=True):
        alone = name == "adamw" or registry.cards()[name].is_a("Optimizer")
        assert ("adamw" in used) is (name == "adamw" or not alone), name
        assert used.count(name) == 1
    assert set(ALONE) == {"Optimizer", "Arithmetic"}


def test_an_optimizer_of_some_parameters_displaces_none(tmp_path: Path) -> None:
    arm = Arm(name="two", add=({"use": "sgd_sai", "params": "*_proj.weight"},))
    assert methods(tmp_path, "full:", arm)[1] == ["pack", "next_token", "adamw", "held_out", "sgd_sai"]


def test_a_file_of_ones_own_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    assert methods(tmp_path, "full:", Arm(name="own", add=({"use": "./mine.py"},)))[1] == [
        "pack",
        "next_token",
        "./mine.py",
        "held_out",
    ]


def test_a_merge_takes_the_merge_s_place(tmp_path: Path) -> None:
    assert methods(tmp_path, "mean:", "arc: slerp", stage="merged") == [["interpolate"], ["slerp"]]


def test_evaluators_of_the_stage_make_room_for_those_of_the_comparison(tmp_path: Path) -> None:
    found = tiny.spec(tmp_path)
    bare = ArmRecipes(found).bare(found.arms[0], {})
    (stage,) = [s for s in bare.stages if s.name == "adapt"]
    assert [m["use"] for m in stage.methods] == ["pack", "next_token", "adamw"]
    run = ArmRecipes(found).run(found.arms[0], 0, Length(steps=8))
    (stage,) = [s for s in run.stages if s.name == "adapt"]
    assert [m["use"] for m in stage.methods][-1] == "held_out" and stage.methods[-1]["split"] == "tune"


PROJECTIONS = {"params": "*_proj.weight"}


@pytest.mark.parametrize(
    "arm",
    [
        Arm(name="two", add=({"use": "sgd_sai", "params": "*"},)),
        Arm(name="two", add=({"use": "adamw"} | PROJECTIONS, {"use": "./mine.py"})),
        Arm(
            name="two",
            add=({"use": "sgd_sai"} | PROJECTIONS, {"use": "torch_optim", "optimizer": "SGD"} | PROJECTIONS),
            drop=("adamw",),
        ),
    ],
)
def test_two_optimizers_of_one_parameter_are_refused_before_anything_runs(arm: Arm, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    with pytest.raises(
        UserError, match=r"arm 'two': .* both claim (the step of the parameters )?[\w'*.]+; keep one of them"
    ):
        tiny.comparison(tmp_path, arms=(Arm(name="full"), arm)).check()
    assert not list((tmp_path / "store").glob("*/manifest.json"))


def test_settings_of_a_method_of_one_s_own_file_are_tuned_under_its_name(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    mine = Arm(name="mine", add=({"use": "./mine.py"},), search={"lr": [1e-4, 1e-3]})
    spec = tiny.spec(tmp_path, (Arm(name="full"), mine), stage="adapt")
    recipes = ArmRecipes(spec)
    found = tuning.candidates(spec, recipes, mine)
    assert found == [{"mine.lr": 1e-4}, {"mine.lr": 1e-3}]
    stage = recipes.stages(mine, found[1])["adapt"]["methods"]
    assert {"use": "./mine.py", "lr": 1e-3} in stage and "adamw" not in [m["use"] for m in stage]
    assert caveats.rates(stage, tmp_path) == ["mine.lr"]


def test_what_else_the_evaluation_takes_is_there_for_every_arm(tmp_path: Path) -> None:
    found = tiny.spec(tmp_path)
    judge = next(t for t in found.table["stage"] if t["name"] == "judge")
    judge["from"] = {**judge["from"], "teacher": "base", "oracle": "base"}
    judge["methods"] = [{"use": "teacher_hacking"}]
    made = ArmRecipes(found).run(found.arms[0], 0, Length(steps=8))
    assert made.stages[-1].inputs == {"models": ("adapt",), "data": ("corpus",), "teacher": ("base",),
                                      "oracle": ("base",)}


def test_an_arm_is_judged_with_methods_of_its_own(tmp_path: Path) -> None:
    arms = (Arm(name="full"), Arm(name="good", judge=({"use": "behind_good"},)))
    found = ArmRecipes(tiny.spec(tmp_path, arms))
    judged = [[m["use"] for m in found.run(arm, 0, Length()).stages[-1].methods] for arm in arms]
    assert judged == [["held_out"], ["held_out", "behind_good"]]


def test_settings_of_the_model_that_a_stage_makes_are_tuned_too(tmp_path: Path) -> None:
    key = "model.hidden_size"
    found = tiny.spec(tmp_path, stage="base", metric="loss/prose", tune={key: [16, 32]})
    recipes, arm = ArmRecipes(found), found.arms[0]
    assert tuning.candidates(found, recipes, arm) == [{key: 16}, {key: 32}]
    assert recipes.stages(arm, {key: 32})["base"]["model"]["hidden_size"] == 32
    with pytest.raises(UserError, match="no method that the stage names has this setting"):
        tuning.candidates(tiny.spec(tmp_path, stage="base", tune={"model.width": [1]}), recipes, arm)
