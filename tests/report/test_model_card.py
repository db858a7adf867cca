"""The card of an exported model says what its manifest says, and makes up nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from trainwright.core.errors import UserError
from trainwright.core.recipe import load
from trainwright.life.run import run
from trainwright.report.model_card import OPEN, model_card
from trainwright.storage.artifact import Artifact
from trainwright.storage.store import Store


@pytest.mark.slow
def test_a_card_tells_the_life_of_a_model(life: Path) -> None:
    store = Store(life.parent / "store")
    made = run(load(life), store)
    text = model_card(made["merged"], store)
    assert text.startswith("---\nlibrary_name: transformers\ntags: [trainwright]\n---\n")
    order = [text.index(f"- {name} (") for name in ("corpus", "base", "adapt", "merged")]
    assert order == sorted(order), "the earliest first"
    assert f"{made['base'].figures['steps']:,} steps" in text and ": interpolate;" in text
    numbers = made["judge"].figures["numbers"]
    for metric, value in numbers["merged"].items():
        shown = metric.replace("_", r"\_")
        assert f"| {shown} | {value:.4g} | {numbers['base'][metric]:.4g} |" in text
    assert OPEN in text and "license: " not in text.split("---")[1]
    corpus = model_card(made["corpus"], store)
    assert "What was measured" not in corpus, "nothing was"


NAME = '[a](http://b) <img src=x onerror=y> `c` | \x1b[31m```\n# d'


def manifest(folder: Path, **changes: Any) -> Artifact:
    """An artifact of which nothing but its manifest is there."""
    made = {"stage": NAME, "kind": "train", "hash": "0" * 12, "title": NAME, "seed": 0, "inputs": {},
            "settings": {"methods": [{"use": NAME}]}, "versions": {"trainwright": "0"}, "git": None,
            "command": "x", "started": "2025-01-01T00:00:00+00:00", "finished": "2025-01-01T00:00:00+00:00",
            "seconds": 1.0, "ranks": 1, "figures": {}, "texts": {}, "pictures": {}} | changes
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(made))
    return Artifact(folder)


def test_names_are_no_markup(tmp_path: Path) -> None:
    """A card is shown by the Hub, and names may be a stranger's."""
    text = model_card(manifest(tmp_path / "s" / f"x-{'0' * 12}"), Store(tmp_path / "s"))
    body, settings = text.split("## Settings")
    shown = re.sub(r"\\.", "", body).replace("tags: [trainwright]", "").replace("`license:`", "")
    assert not re.search(r"[<`\[]|\x1b", shown), shown
    assert body.count("\n# ") == 1 and settings.count("````") == 2


def test_artifacts_that_were_made_from_each_other_end(tmp_path: Path) -> None:
    made = [
        manifest(tmp_path / f"x-{key * 12}", hash=key * 12, stage="x", title="",
                 inputs={"model": [{"stage": "x", "hash": other * 12}]})
        for key, other in ("01", "12", "20")
    ]
    text = model_card(made[0], Store(tmp_path))
    assert text.count("- x (train)") == 3


@pytest.mark.parametrize("changes", [
    {"versions": {}}, {"settings": {"methods": [{}]}}, {"settings": {"methods": [3]}}, {"stage": 3},
    {"inputs": {"model": [3]}}])
def test_a_manifest_of_another_content_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"manifest\.json"):
        model_card(manifest(tmp_path / "s" / f"x-{'0' * 12}", **changes), Store(tmp_path / "s"))
