"""The plan: who acts where, and figures that the run then has."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.planning.probes import Here
from trainwright.core import hardware
from trainwright.core.errors import UserError
from trainwright.core.recipe import load
from trainwright.life.run import run
from trainwright.planning import plan as plans
from trainwright.planning.plan import plan
from trainwright.storage.store import Store

Command = Callable[..., CompletedProcess[str]]
SMALL = "hidden_size = 16, intermediate_size = 32"


def test_who_acts_where_in_recipe_order(life: Path) -> None:
    told = plan(load(life), Store(life.parent / "store"), estimate=False)
    base = next(s for s in told.stages if s.job.stage.name == "base")
    assert base.places == [
        ("2 control", ["wsd"]),
        ("3 data", ["pack(length=32)"]),
        ("4 objective", ["next_token"]),
        ("5-6 update", ["clip_gradients", "adamw(lr=0.01)"]),
    ]
    assert [s.cached for s in told.stages] == [False] * 5
    assert told.stages[3].places == [("combine", ["interpolate(weights=(0.5, 0.5))"])]


def test_defaults_stand_in_for_kinds_that_are_left_out(life: Path) -> None:
    life.write_text(
        life.read_text().replace('{ use = "next_token" }, ', "").replace('{ use = "adamw", lr = 1e-2 }, ', "")
    )
    base = plan(load(life), Store(life.parent / "store"), estimate=False).stages[1]
    assert [m.name for m in base.job.methods] == [
        "pack",
        "clip_gradients",
        "wsd",
        "next_token",
        "adamw",
        "step_law",
    ]


@pytest.mark.slow
def test_figures_are_those_of_the_run(life: Path) -> None:
    store, recipe = Store(life.parent / "store"), load(life)
    told = {s.job.stage.name: s.figures for s in plan(recipe, store, probes=Here()).stages}
    made = run(recipe, store)
    for stage in ("base", "adapt"):
        figures = made[stage].figures
        assert [told[stage][k] for k in ("parameters", "trainable", "steps", "tokens")] == [
            figures[k] for k in ("parameters", "trainable_parameters", "steps", "tokens")]
        assert abs(told[stage]["flops"] / figures["flops"] - 1) < 0.05, (
            "counted on another batch of this shape"
        )
        assert told[stage]["seconds"] > 0 and told[stage]["memory_bytes"] > 4 * told[stage]["parameters"]
    again = plan(recipe, store)
    assert all(s.cached for s in again.stages) and "in the store" in str(again)


@pytest.mark.slow
def test_the_estimated_memory_is_what_the_stage_takes(life: Path, command: Command) -> None:
    """Half a million parameters, whose rows take as much as the process itself; each side in
    a process of its own."""
    life.write_text(
        life.read_text()
        .replace(SMALL, "hidden_size = 128, intermediate_size = 512")
        .replace("batch_tokens = 256", "batch_tokens = 16384", 1)
        .replace("steps = 6", "steps = 4")
    )
    text = life.read_text()
    life.write_text(text.split('[[stage]]\nname = "base"')[0])
    assert command("run", life.name, cwd=life.parent).returncode == 0, (
        "the corpus, which would leave something behind"
    )
    life.write_text(text.split('[[stage]]\nname = "adapt"')[0])
    store = Store(life.parent / "store")
    (told,) = (s.figures for s in plan(load(life), store).stages if not s.cached)
    done = command("run", life.name, cwd=life.parent)
    assert done.returncode == 0, done.stderr
    found = store.named("base").figures["peak_memory_bytes"]
    assert abs(told["memory_bytes"] / found - 1) < 0.1, (told["memory_bytes"], found)


@pytest.mark.slow
def test_nothing_is_tried_twice(life: Path) -> None:
    store, probes = Store(life.parent / "store"), Here()
    first = plan(load(life), store, probes=probes)
    assert (
        plan(load(life, {"adapt.steps": 4}), store, probes=probes).stages[1].figures
        == first.stages[1].figures
    )
    assert probes.taken == ["base", "adapt", "adapt"], "base did not change"


@pytest.mark.slow
def test_a_corpus_in_the_same_process_is_charged(life: Path) -> None:
    store, recipe, probes = Store(life.parent / "store"), load(life), Here()
    before = plan(recipe, store, probes=probes).stages
    (probe,) = (t for key, t in probes.known.items() if key[1] == before[1].job.key)
    assert before[1].figures["memory_bytes"] == probe.memory_bytes(8) + plans.CORPUS_LEAVES
    assert [plans.left_behind(s.job, store) > 0 for s in before] == [False, True, True, True, True]
    alone = life.with_name("corpus.toml")
    alone.write_text(life.read_text().split('[[stage]]\nname = "base"')[0])
    run(load(alone), store)
    assert [plans.left_behind(s.job, store) for s in before] == [0.0] * 5


@pytest.mark.slow
def test_the_key_follows_what_changes_a_result_and_nothing_else(life: Path) -> None:
    def keys(**changes: object) -> list[str]:
        recipe = load(life, {k.replace("__", "."): v for k, v in changes.items()})
        return [s.job.key for s in plan(recipe, Store(life.parent / "store"), estimate=False).stages]
    whole = keys()
    assert keys(base__save_every=7, title="other") == whole
    assert [a == b for a, b in zip(keys(adapt__steps=4), whole, strict=True)] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert [a == b for a, b in zip(keys(judge__old=["code"]), whole, strict=True)] == [True] * 4 + [False]
    assert not set(keys(seed=4)) & set(whole), "a seed changes everything that draws"


@pytest.mark.slow
def test_too_little_memory_is_an_error(life: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 1e8)
    with pytest.raises(
        UserError, match=r"stage 'base': about [\d.]+ GiB of memory are needed and 0.1 GiB are there"
    ):
        plan(load(life), Store(life.parent / "store"), probes=Here())


def test_what_cannot_fit_is_refused_before_it_is_tried(life: Path) -> None:
    life.write_text(life.read_text().replace(SMALL, "hidden_size = 65536, intermediate_size = 9"))
    probes = Here()
    with pytest.raises(UserError, match=r"stage 'base': about \d{3,}\.\d GiB of memory are needed"):
        plan(load(life), Store(life.parent / "store"), probes=probes)
    assert not probes.taken


@pytest.mark.slow
def test_what_cannot_be_known_yet_is_said(life: Path) -> None:
    life.write_text(life.read_text().replace("steps = 6", "epochs = 1"))
    base = plan(load(life), Store(life.parent / "store"), probes=Here()).stages[1]
    assert "steps" not in base.figures and base.figures["parameters"] > 0 and "memory_bytes" in base.figures


def test_an_objective_that_scores_more_than_tokens_waits_for_its_data(life: Path) -> None:
    text = life.read_text().partition('[[stage]]\nname = "adapt"')[0]
    classes = ('{ use = "examples", fields = ["text", "label"], length = 32 }, '
               '{ use = "classifier", classes = ["code", "prose"], pool = "mean" }, { use = "label" }')
    life.write_text(text.replace('{ use = "pack", length = 32 }, { use = "next_token" }', classes))
    base = plan(load(life), Store(life.parent / "store"), probes=Here()).stages[1]
    assert base.note.startswith("its objective scores more than tokens") and "seconds" not in base.figures
    assert base.figures["parameters"] > 0 and base.figures["steps"] == 6
