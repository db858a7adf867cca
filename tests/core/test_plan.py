"""The plan: who acts where, and figures that the run then has."""
from __future__ import annotations

from pathlib import Path

import pytest

from trainwright.core import hardware
from trainwright.core.errors import UserError
from trainwright.core.plan import plan
from trainwright.core.recipe import load
from trainwright.core.run import run
from trainwright.core.store import Store


def test_who_acts_where_in_recipe_order(life: Path) -> None:
    told = plan(load(life), Store(life.parent / "store"), predict=False)
    base = next(s for s in told.stages if s.job.stage.name == "base")
    assert base.places == [("2 control", ["wsd"]), ("3 data", ["pack(length=32)"]), ("4 objective", ["next_token"]),
                           ("5-6 update", ["clip", "adamw(lr=0.01)"])]
    assert [s.cached for s in told.stages] == [False] * 5
    assert told.stages[3].places == [("combine", ["interpolate(weights=(0.5, 0.5))"])]


def test_defaults_stand_in_for_kinds_that_are_left_out(life: Path) -> None:
    life.write_text(life.read_text().replace('{ use = "next_token" }, ', "").replace('{ use = "adamw", lr = 1e-2 }, ', ""))
    base = plan(load(life), Store(life.parent / "store"), predict=False).stages[1]
    assert [m.name for m in base.job.methods] == ["pack", "clip", "wsd", "next_token", "adamw", "step_law"]


def test_figures_are_those_of_the_run(life: Path) -> None:
    store, recipe = Store(life.parent / "store"), load(life)
    told = {s.job.stage.name: s.figures for s in plan(recipe, store).stages}
    made = run(recipe, store)
    for stage in ("base", "adapt"):
        figures = made[stage].figures
        assert [told[stage][k] for k in ("parameters", "trainable", "steps", "tokens")] == [
            figures[k] for k in ("parameters", "trainable_parameters", "steps", "tokens")]
        assert abs(told[stage]["flops"] / figures["flops"] - 1) < 0.05, "counted on another batch of this shape"
        assert told[stage]["seconds"] > 0 and told[stage]["memory_bytes"] > 4 * told[stage]["parameters"]
    again = plan(recipe, store)
    assert all(s.cached for s in again.stages) and "in the store" in str(again)


def test_the_key_follows_what_changes_a_result_and_nothing_else(life: Path) -> None:
    def keys(**changes: object) -> list[str]:
        recipe = load(life, {k.replace("__", "."): v for k, v in changes.items()})
        return [s.job.key for s in plan(recipe, Store(life.parent / "store"), predict=False).stages]
    whole = keys()
    assert keys(base__save_every=7, title="other") == whole
    assert [a == b for a, b in zip(keys(adapt__steps=4), whole, strict=True)] == [True, True, False, False, False]
    assert [a == b for a, b in zip(keys(judge__old=["code"]), whole, strict=True)] == [True] * 4 + [False]
    assert not set(keys(seed=4)) & set(whole), "a seed changes everything that draws"


def test_too_little_memory_is_an_error(life: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 1e8)
    with pytest.raises(UserError, match=r"stage 'base': about [\d.]+ GiB of memory are needed and 0.1 GiB are there"):
        plan(load(life), Store(life.parent / "store"))


def test_what_cannot_be_known_yet_is_said(life: Path) -> None:
    life.write_text(life.read_text().replace("steps = 6", "epochs = 1"))
    base = plan(load(life), Store(life.parent / "store")).stages[1]
    assert "steps" not in base.figures and base.figures["parameters"] > 0 and "memory_bytes" in base.figures
