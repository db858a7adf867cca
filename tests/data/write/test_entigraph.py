"""Every pair and every triple of a document's entities gets a text, and each is written in the light of
the whole document."""
from __future__ import annotations

import json
import re
from math import comb
from pathlib import Path
from typing import Any

import pytest

from tests.data.frames import frame, told
from tests.lm.writing.stub_writer import serving
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.data.write.entigraph import Entigraph, listed

TEXTS = {"a": "Anna met Boris in Celje. Dora saw Emil.", "b": "Fritz left Graz."}


def rule(prompt: str, body: dict[str, Any]) -> str:
    """Entities are the capitalised words; a relation is a line that names them."""
    text = prompt.split("Document:\n")[1].split("\n\nEntities:\n")[0]
    if "\n\nEntities:\n" in prompt:
        return "On " + " and ".join(re.findall(r"^- (.+)$", prompt, re.M))
    return "```json\n" + json.dumps({"summary": f"About: {text}",
                                     "entities": re.findall(r"[A-Z]\w+", text)}) + "\n```"


def documents() -> Any:
    return frame([{"id": name, "text": text, "domain": "books"} for name, text in TEXTS.items()]
                 + [{"id": "other", "text": "Hans", "domain": "web"}])


def test_every_pair_and_triple_once_and_the_document_in_every_prompt(tmp_path: Path) -> None:
    with serving(rule) as stub:
        made = told(stub.method(Entigraph, domains=("books",)).apply(documents(), Context(folder=tmp_path)))
    new = {name: row for name, row in made.items() if row["source"] == "entigraph"}
    # what was read is replaced by what was written
    assert set(made) - set(new) == {"other"}
    assert len(new) == (1 + comb(5, 2) + comb(5, 3)) + (1 + comb(2, 2))
    sets = [tuple(json.loads(r["metadata"])["entities"])
            for n, r in new.items() if n.startswith("a#relation")]
    assert len({frozenset(s) for s in sets}) == len(sets) == 20 and {len(s) for s in sets} == {2, 3}
    assert new["a#relation/0-4"]["text"] == "On Anna and Emil"
    assert new["b#summary"]["text"] == "About: Fritz left Graz."
    assert all(TEXTS["a"] in p or TEXTS["b"] in p for p in stub.prompts)
    assert {r["domain"] for r in new.values()} == {"books"}


def test_a_limit_is_a_sample_that_the_seed_draws(tmp_path: Path) -> None:
    found = []
    with serving(rule) as stub:
        for number, seed in enumerate((0, 0, 1)):
            (folder := tmp_path / str(number)).mkdir()
            how = stub.method(Entigraph, most=4, keep_originals=True, domain="new")
            made = told(how.apply(documents(), Context(folder=folder, seed=seed)))
            assert set(TEXTS) < set(made) and sum(n.startswith("a#relation") for n in made) == 8
            found.append({n for n, row in made.items() if row["domain"] == "new"})
    assert found[0] == found[1] != found[2]


def test_the_list_is_asked_for_again_until_it_can_be_read(tmp_path: Path) -> None:
    turns: dict[str, int] = {}

    def slow(prompt: str, body: dict[str, Any]) -> str:
        turns[prompt] = turns.get(prompt, 0) + 1
        if "Entities:\n" in prompt or turns[prompt] > 2:
            return rule(prompt, body)
        return ("no idea", '{"entities": []}')[turns[prompt] - 1]

    ctx = Context(folder=tmp_path)
    with serving(slow) as stub:
        made = told(stub.method(Entigraph, domains=("books",), sizes=(2,), tries=3).apply(documents(), ctx))
    assert len(made) == 1 + 11 + 2 and ctx.notes["entigraph/without_entities"] == [(0.0, 1.0)]
    assert len({b["seed"] for b in stub.bodies if "JSON" in b["messages"][0]["content"]}) == 6


def test_a_writer_that_names_nothing_is_told(tmp_path: Path) -> None:
    with serving(lambda prompt, body: "I do not know.") as stub:
        with pytest.raises(UserError,
                           match="named no entity in any of 3 parts of documents, in 2 tries each"):
            stub.method(Entigraph, tries=2).apply(documents(), Context(folder=tmp_path))
        assert len(stub.bodies) == 6


def test_lists_are_read_and_settings_checked() -> None:
    assert listed('Here: {"summary": " S ", "entities": ["A", " A ", "", 3, "B"]} done') == ("S", ("A", "B"))
    for wrong in ("", "{", '["A"]', '{"summary": "S"}', '{"entities": 3}', "{}", "{" + "[" * 100_000 + "}"):
        assert listed(wrong) == ("", ())
    for settings, why in (({"sizes": ()}, "sizes"), ({"sizes": (2, 2)}, "sizes"), ({"most": 0}, "most"),
                          ({"tries": 0}, "tries"),
                          ({"prompts": {"relations": "{text}"}}, "did you mean 'relation'"),
                          ({"prompts": {"relation": "{text}"}}, "lacks {text} or {entities}")):
        with pytest.raises(ValueError, match=why):
            Entigraph(**settings)
