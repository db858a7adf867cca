"""Cards as people read them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from trainwright.core import registry
from trainwright.core.errors import UserError
from trainwright.report.cards import artifact_card, in_words, settings_of
from trainwright.storage.artifact import Artifact

ROW = {"method": "[red]text", "in": 0, "written": 3, "dropped": 0, "out": 3}


def test_a_group_of_settings_is_followed_by_its_own() -> None:
    rows = {name: rest for name, *rest in settings_of(registry.cards()["entigraph"])}
    assert rows["writer"][:2] == ["table", "{}"]
    assert rows["writer.max_tokens"][:2] == ["int", "2048"]  # the method's default, not the group's
    assert rows["writer.endpoint"][:2] == ["str", "''"] and "OpenAI" in rows["writer.endpoint"][2]
    assert all(doc for _, _, doc in rows.values())
    names = list(rows)
    assert names.index("writer.endpoint") == names.index("writer") + 1


def test_other_settings_are_those_of_the_card() -> None:
    card = registry.cards()["wrap"]
    assert [row for row in settings_of(card) if "." not in row[0] and row[0] != "writer"] == [
        row for row in card.settings if row[0] != "writer"
    ]


def test_types_are_said_in_words() -> None:
    assert in_words("Count") == "int (1 or more)" and in_words("int | float") == "int | float"
    assert in_words("Literal['sqrt', 'linear']") == '"sqrt" | "linear"'
    assert in_words("tuple[Part, ...]") == "tuple[float (at least 0 and below 1), ...]"
    assert in_words("FilePath") == "str" and in_words("Writer") == "Writer"


def kept(folder: Path, curated: Any) -> Artifact:
    """An artifact whose figures say so."""
    told = {"stage": "corpus", "inputs": {}, "figures": {"curated": curated}, "settings": {}}
    (folder / "manifest.json").write_text(json.dumps(told))
    return Artifact(folder)


@pytest.mark.parametrize("curated", [7, "x", [7], [{}], [ROW | {"in": "many"}], [ROW | {"out": None}]])
def test_figures_that_are_none_are_damage(curated: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        artifact_card(kept(tmp_path, curated))


def test_names_of_an_artifact_are_shown_as_they_are(tmp_path: Path) -> None:
    shown = Console(width=100, record=True, file=io.StringIO())
    shown.print(artifact_card(kept(tmp_path, [ROW])))
    text = shown.export_text()
    assert "[red]text" in text and "methods: none" in text
