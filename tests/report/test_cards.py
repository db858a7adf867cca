"""Cards as people read them."""

from __future__ import annotations

from trainwright.core import registry
from trainwright.report.cards import in_words, settings_of


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
