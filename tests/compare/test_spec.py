"""What is compared with what, and every mistake in it in a sentence, before anything runs."""

import pytest

from tests.compare.tiny import comparison, recipe
from trainwright.compare import spec as specs
from trainwright.compare.spec import Arm, parse_arm, parse_budget, parse_tune
from trainwright.core.errors import UserError


def test_an_arm_on_the_command_line():
    arm = parse_arm(
        "lora: peft LoraConfig r=8 use_dora=true, clip_gradients norm=0.5, -cosine, methods.adamw.lr=3e-4"
    )
    assert arm.name == "lora" and arm.drop == ("cosine",) and arm.set == {"methods.adamw.lr": 3e-4}
    assert arm.add == (
        {"use": "peft", "config": "LoraConfig", "options": {"r": 8, "use_dora": True}},
        {"use": "clip_gradients", "norm": 0.5},
    )
    assert parse_arm("full:") == Arm(name="full")


def test_settings_within_settings_on_the_command_line():
    arm = parse_arm('q: peft LoraConfig target_modules=["q_proj", "v_proj"] loftq_config.bits=4, '
                    'wrap writer.endpoint="http://here/v1" writer.seed=3, '
                    'classifier words={ plants = ["a tree", "a, b"] }')
    assert arm.add == (
        {"use": "peft", "config": "LoraConfig",
         "options": {"target_modules": ["q_proj", "v_proj"], "loftq_config": {"bits": 4}}},
        {"use": "wrap", "writer": {"endpoint": "http://here/v1", "seed": 3}},
        {"use": "classifier", "words": {"plants": ["a tree", "a, b"]}},
    )


@pytest.mark.parametrize(
    "text, words",
    [
        ("lora rank=8", "NAME: METHOD"),
        ("a: lorra rank=8", "did you mean 'lora'"),
        ("a: lora 8 9", "write key=value"),
        ("a: peft LoraConfig target_modules=[", "brackets come in pairs"),
        ("a: wrap writer=3 writer.seed=4", "writer has a value already"),
        ("a: 'lora", "no closing quotation: quotation marks come in pairs"),
        ('a: lora rank="8', "no closing quotation"),
    ],
)
def test_a_wrong_arm(text, words):
    with pytest.raises(UserError, match=words):
        parse_arm(text)


def test_budget_and_tune():
    assert parse_budget("tokens=2e6") == {"tokens": 2e6}
    assert parse_tune(["lr", "clip_gradients.norm=0.5,1", "adamw.beta2=0.9..0.99"]) == {
        "lr": "around",
        "clip_gradients.norm": [0.5, 1],
        "adamw.beta2": {"low": 0.9, "high": 0.99},
    }
    with pytest.raises(UserError, match="tokens=2e6"):
        parse_budget("much")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"stage": "adopt"}, "did you mean 'adapt'"),
        ({"stage": "corpus"}, "only stages of the kinds merge, train, transform can be compared"),
        ({"seeds": 1}, "two runs at least"),
        ({"seeds": 2.5}, "whole number"),
        ({"sedes": 3}, "did you mean 'seeds'"),
        ({"metric": "delight"}, "better ="),
        ({"metric": "gain/nonsense", "better": "higher"}, "no evaluator makes"),
        ({"baseline": "ful"}, "did you mean 'full'"),
        ({"budget": {"tokens": 100}}, "too small for one step"),
        ({"budget": {"tokens": -1}}, "positive"),
        ({"budget": {"hours": 1}}, "budget is one of"),
        ({"budget": {"tokens": 1e4, "flops": 1}}, "budget is one of"),
        ({"tune": {"lrr": [1.0]}}, "did you mean 'lr'"),
        ({"tune": {"lr": "near"}}, "around"),
        ({"tune": {"lr": {"low": 1e-2, "high": 1e-3}}}, "below high"),
        ({"tune": {"lr": []}}, "write a list"),
        ({"trials": 0}, "must be positive"),
        ({"reseed": ["bse"]}, "did you mean 'base'"),
        ({"arms": (Arm(name="full"), Arm(name="full"))}, "two arms are called"),
        ({"arms": (Arm(name="full"),)}, "needs two arms"),
        ({"arms": (Arm(name="a"), Arm(name="b"))}, "do not differ"),
        (
            {"arms": (Arm(name="a"), Arm(name="b", drop=("clip_gradients",)))},
            "drops 'clip_gradients', which the stage has not",
        ),
        ({"arms": (Arm(name="a"), Arm(name="b", at="nowhere", drop=("clip_gradients",)))}, "is no stage"),
        ({"arms": (Arm(name="a"), Arm(name="b", add=({"use": "lora", "rnk": 2},)))}, "did you mean 'rank'"),
        ({"arms": (Arm(name="a"), Arm(name="b", set={"batch_tokens": 8}))}, "less than one row"),
        (
            {
                "arms": (Arm(name="a"), Arm(name="b", set={"batch_tokens": 64}, search={"lr": [1e-3]})),
                "tune": {"lr": [1e-3, 1e-2]},
            },
            "same tuning effort",
        ),
    ],
)
def test_mistakes_are_found_before_anything_runs(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        comparison(tmp_path, **changes).check()
    assert not (tmp_path / "store").exists() or not list((tmp_path / "store").glob("*/manifest.json"))


def test_a_file_with_arms_and_a_life_beside_it(tmp_path):
    life = recipe(tmp_path)
    (tmp_path / "deeper").mkdir()
    file = tmp_path / "deeper" / "which.toml"
    file.write_text(
        '[compare]\nrecipe = "../life.toml"\nstage = "adapt"\nmetric = "loss/code"\n'
        '[[arm]]\nname = "full"\n[[arm]]\nname = "lora"\nadd = [{ use = "lora", rank = 2 }]\n'
    )
    spec = specs.load(file, {"seeds": 2})
    assert (
        [a.name for a in spec.arms] == ["full", "lora"]
        and spec.baseline == "full"
        and spec.settings.seeds == 2
    )
    assert spec.life.resolve() == life.resolve()
    file.write_text(file.read_text() + '[[stage]]\nname = "x"\nkind = "corpus"\n')
    with pytest.raises(UserError, match="stages are in this file"):
        specs.load(file)


def test_an_arm_against_itself_needs_no_second_one(tmp_path):
    spec = comparison(tmp_path, arms=(Arm(name="full"),), aa=True).spec
    assert [a.name for a in spec.arms] == ["full", "full again"] and spec.baseline == "full"


def test_a_recipe_without_arms_is_compared_with_itself(tmp_path):
    settings = {"stage": "adapt", "metric": "loss/code"}
    found = specs.load(recipe(tmp_path), settings, (), None, True)
    assert [a.name for a in found.arms] == ["recipe", "recipe again"]
    named = specs.load(recipe(tmp_path), settings | {"baseline": "plain AdamW"}, (), None, True)
    assert [a.name for a in named.arms] == ["plain AdamW", "plain AdamW again"]
