"""The schema for editors accepts every recipe here, and refuses what the reader of recipes refuses."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from trainwright.core import registry
from trainwright.planning.schema import schema

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    made = json.loads(json.dumps(schema()))
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(made)


@pytest.mark.slow
@pytest.mark.parametrize("file", RECIPES, ids=lambda f: f.stem)
def test_every_recipe_is_accepted(file: Path, validator: jsonschema.Draft202012Validator) -> None:
    errors = [f"{list(e.absolute_path)}: {e.message[:200]}"
              for e in validator.iter_errors(tomllib.loads(file.read_text()))]
    assert not errors


@pytest.mark.slow
def test_every_method_is_accepted_as_its_example(validator: jsonschema.Draft202012Validator) -> None:
    """The examples are what the battery runs."""
    bad = {}
    for name in registry.cards():
        method = json.loads(json.dumps({"use": name} | dict(registry.find(name).example), default=str))
        stage = {"name": "s", "kind": "train", "from": {"data": "c"}, "methods": [method]}
        if errors := [e.message[:120] for e in validator.iter_errors({"stage": [stage]})]:
            bad[name] = errors
    assert not bad


def train(**changes: Any) -> dict[str, Any]:
    return {"stage": [{"name": "s", "kind": "train", "from": {"data": "c"}, "steps": 2,
                       "methods": [{"use": "adamw", "lr": 1e-3}]} | changes]}


@pytest.mark.parametrize("recipe", [
    train(), train(steps=2e3), train(methods=[{"use": "./mine.py", "whatever": 1}]),
    train(snapshots=[0.5, 3])])
def test_what_runs_is_accepted(recipe: Any, validator: jsonschema.Draft202012Validator) -> None:
    assert not list(validator.iter_errors(recipe))


@pytest.mark.parametrize("recipe", [
    train(step=3), train(steps="three"), train(steps=2.5), train(kind="trian"), train(name=3),
    train(methods=[{"use": "adam_w"}]), train(methods=[{"use": "adamw", "rate": 1}]),
    train(methods=[{"use": "adamw", "lr": -1}]), train(methods=[{}]), {"stages": []}])
def test_what_is_refused_is_marked(recipe: Any, validator: jsonschema.Draft202012Validator) -> None:
    assert list(validator.iter_errors(recipe))


def test_settings_say_what_they_mean(validator: jsonschema.Draft202012Validator) -> None:
    find: Callable[[str], Any] = validator.schema["$defs"].__getitem__
    assert len(find("method.lora")["properties"]["rank"]["description"]) > 10
    assert len(find("train")["properties"]["accumulate"]["description"]) > 10
