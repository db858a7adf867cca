"""Rounds of stages: names, seeds, an early end, and resume in the middle."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trainwright import families
from trainwright.core.errors import UserError
from trainwright.core.recipe import Recipe, parse
from trainwright.life.jobs import jobs
from trainwright.life.run import run
from trainwright.storage.artifact import Artifact
from trainwright.storage.store import Store

TRAIN: dict[str, Any] = {
    "name": "tune",
    "kind": "train",
    "from": {"model": "previous.tune", "data": "corpus"},
    "steps": 2,
    "batch_size": 8,
    "precision": "fp32",
    "compile": False,
    "methods": [{"use": "pack", "length": 32}, {"use": "adamw", "lr": 1e-2}],
}
JUDGE: dict[str, Any] = {"name": "judge", "kind": "evaluate", "from": {"models": ["tune"], "data": "corpus"},
                         "methods": [{"use": "held_out", "length": 32}]}
CORPUS = {"name": "corpus", "kind": "corpus", "vocab_size": 300, "tune": 0.1, "test": 0.1,
          "methods": [{"use": "text", "paths": ["texts/prose", "texts/code"]}]}
BASE = TRAIN | {"name": "base", "from": {"data": "corpus"},
                "model": {"type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
                          "num_attention_heads": 2}}
LOOP: dict[str, Any] = {
    "name": "loop",
    "kind": "repeat",
    "rounds": 3,
    "start": {"tune": "base"},
    "stage": [TRAIN, JUDGE],
}


def recipe(life: Path, loop: dict[str, Any] = LOOP, *after: dict[str, Any]) -> Recipe:
    return parse({"seed": 3, "stage": [CORPUS, BASE, loop, *after]}, life)


def store(life: Path) -> Store:
    return Store(life.parent / "store")


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    return dict(families.load(artifact.path, "a test").state_dict())


@pytest.mark.slow
def test_rounds_are_stages_of_their_own(life: Path) -> None:
    found = {j.stage.name: j for j in jobs(recipe(life), store(life))}
    assert list(found) == [
        "corpus",
        "base",
        "loop.1.tune",
        "loop.1.judge",
        "loop.2.tune",
        "loop.2.judge",
        "loop.3.tune",
        "loop.3.judge",
    ]
    assert found["loop.1.tune"].inputs["model"][0].name == "base"
    assert found["loop.3.tune"].inputs["model"][0].hash == found["loop.2.tune"].key
    assert [found[f"loop.{r}.tune"].seed for r in (1, 2, 3)] == [3, 4, 5]


@pytest.mark.slow
def test_later_stages_take_the_last_round_or_another(life: Path) -> None:
    judge = JUDGE | {
        "name": "end",
        "from": {"models": ["base", "loop.1.tune", "loop.tune"], "data": "corpus"},
    }
    made = run(recipe(life, LOOP, judge), store(life))
    told = made["end"].figures["numbers"]
    assert told["loop.tune"] == made["loop.3.judge"].figures["numbers"]["loop.3.tune"]
    assert told["loop.1.tune"] == made["loop.1.judge"].figures["numbers"]["loop.1.tune"]


@pytest.mark.slow
def test_rounds_are_what_the_stages_would_be_by_hand(life: Path) -> None:
    rounds = run(recipe(life, LOOP | {"rounds": 2}), store(life))
    hand = [TRAIN | {"name": f"by_hand_{i}", "from": {"model": before, "data": "corpus"}, "seed": 2 + i}
            for i, before in ((1, "base"), (2, "by_hand_1"))]
    made = run(parse({"seed": 3, "stage": [CORPUS, BASE, *hand]}, life), store(life))
    assert all(
        torch.equal(t, weights(made["by_hand_2"])[n]) for n, t in weights(rounds["loop.2.tune"]).items()
    )


@pytest.mark.slow
def test_it_ends_when_the_metric_no_longer_improves_and_the_best_round_counts(life: Path) -> None:
    # and it falls in every round
    until = {"stage": "judge", "metric": "loss/prose", "better": "higher", "patience": 2}
    loop = LOOP | {"rounds": 6, "until": until}
    judge = JUDGE | {"name": "end", "from": {"models": ["loop.tune"], "data": "corpus"}}
    made = run(recipe(life, loop, judge), store(life))
    losses = [made[f"loop.{r}.judge"].figures["numbers"][f"loop.{r}.tune"]["loss/prose"] for r in range(1, 7)
              if f"loop.{r}.judge" in made]
    best = max(losses)
    assert len(losses) == 3 and losses.index(best) == 0, "two rounds without a better value"
    assert made["end"].figures["numbers"]["loop.tune"]["loss/prose"] == best
    again = run(recipe(life, loop, judge), store(life))
    assert again.keys() == made.keys(), "run again, everything is there"


@pytest.mark.slow
def test_a_run_killed_in_the_second_round_goes_on_to_the_bit(
    life: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainwright.core import loop
    whole = run(recipe(life), Store(tmp_path / "whole"))
    step, many = loop.Train.step, list[int]()

    def breaks(self: loop.Train) -> None:
        many.append(1)
        # base 2, first round 2, the second step of the second round
        if len(many) == 6:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(loop.Train, "step", breaks)
    with pytest.raises(KeyboardInterrupt):
        run(recipe(life), store(life))
    assert {p.name.partition("-")[0] for p in store(life).root.glob("loop.*")} == {
        "loop.1.tune",
        "loop.1.judge",
    }
    made = run(recipe(life), store(life))
    assert all(
        torch.equal(t, weights(made["loop.3.tune"])[n]) for n, t in weights(whole["loop.3.tune"]).items()
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"stage": []}, r"a repetition needs stages: write \[\[stage\.stage\]\]"),
        ({"rounds": 0}, "rounds must be from 1 to 1000, not 0"),
        (
            {"start": {}},
            r"'previous\.tune' has no meaning in the first round: say start = \{ tune = \"NAME\" \}",
        ),
        (
            {"start": {"tune": "nothing"}},
            r"from\.start\.tune = 'nothing' is neither an earlier stage nor a path",
        ),
        (
            {"until": {"stage": "judg", "metric": "x"}},
            r"until\.stage 'judg' is no stage of a round \(did you mean 'judge'",
        ),
        ({"until": {"metric": "x", "wait": 3}}, r"unknown setting 'wait'"),
        ({"from": {"data": "corpus"}}, "a repetition has no from and no methods of its own"),
        ({"stage": [LOOP]}, "a repetition within a repetition"),
        (
            {"stage": [TRAIN | {"from": {"model": "judge", "data": "corpus"}}, JUDGE]},
            "'judge' is a later stage",
        ),
        ({"stage": [TRAIN | {"steps": "many"}, JUDGE]}, r"stage 'loop': stage 'tune': steps must be"),
    ],
)
def test_mistakes_are_one_sentence(life: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        recipe(life, LOOP | changes)


@pytest.mark.slow
def test_a_metric_that_is_not_measured_is_one_sentence(life: Path) -> None:
    loop = LOOP | {"until": {"stage": "judge", "metric": "loss/poetry"}}
    with pytest.raises(UserError, match=r"until\.metric 'loss/poetry' was not measured \(did you mean"):
        run(recipe(life, loop), store(life))
