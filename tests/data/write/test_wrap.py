"""Rephrases stand beside their originals, one for one, in the styles that were asked."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.frames import frame, told
from tests.lm.writing.stub_writer import serving
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.data.write.wrap import PROMPTS, Wrap

TEXTS = [f"Stone {i} lies here. Moss {i} grows on it." for i in range(40)]


def upper(prompt: str, body: dict[str, Any]) -> str:
    """A rule-based rephraser: the passage in capitals, with the words of a chat model around it."""
    return f"Sure, here is the new text:\n\n{prompt.split(chr(10) * 2)[-1].upper()}\n\nI hope this helps!"


def documents(texts: list[str] = TEXTS) -> Any:
    return frame([{"id": f"d{i}", "text": t, "domain": "web"} for i, t in enumerate(texts)])


def test_one_rephrase_for_each_original_and_both_are_kept(tmp_path: Path) -> None:
    with serving(upper) as stub:
        made = told(stub.method(Wrap).apply(documents(), Context(folder=tmp_path)))
    new = {name: row for name, row in made.items() if row["source"] == "wrap"}
    assert len(made) == 80 and len(new) == 40
    for name, row in new.items():
        meta = json.loads(row["metadata"])
        assert name == f"{meta['original']}#{meta['style']}" and row["domain"] == "web"
        assert row["origin"] == meta["original"]
        # every fact stays, nothing around it does
        assert row["text"] == made[meta["original"]]["text"].upper()
    styles = [json.loads(r["metadata"])["style"] for r in new.values()]
    assert 10 < styles.count("qa") < 30 and set(styles) == {"medium", "qa"}
    # each style has its own wording
    assert sum("Question:" in p for p in stub.prompts) == styles.count("qa")


@pytest.mark.parametrize(("ratio", "least", "most"), [(0.5, 12, 28), (1.5, 48, 72), (2.0, 80, 80)])
def test_the_ratio_is_that_of_documents(tmp_path: Path, ratio: float, least: int, most: int) -> None:
    with serving(upper) as stub:
        made = told(stub.method(Wrap, ratio=ratio, domain="new").apply(documents(), Context(folder=tmp_path)))
    assert least <= sum(r["domain"] == "new" for r in made.values()) <= most


def test_a_long_document_is_rephrased_in_passages_and_none_may_be_lost(tmp_path: Path) -> None:
    def rule(prompt: str, body: dict[str, Any]) -> str:
        return "" if "forbidden" in prompt else upper(prompt, body)

    long = " ".join(f"Sentence number {i} of the text." for i in range(30))
    ctx = Context(folder=tmp_path)
    with serving(rule) as stub:
        how = stub.method(Wrap, styles=("easy",), piece=200)
        made = told(how.apply(documents([long, f"{long} forbidden"]), ctx))
    asked = [p.split("\n\n")[-1] for p in stub.prompts]
    assert len(asked) > 8 and all(len(p) <= 200 for p in asked)
    assert made["d0#easy"]["text"].split() == long.upper().split() and "d1#easy" not in made
    assert {name: len(notes)
            for name, notes in ctx.notes.items()} == {"wrap/rephrased": 1, "wrap/left_out": 1}


def test_conversations_and_other_domains_are_left_alone(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    rows = [{"text": "one", "domain": "a"}, {"text": "two", "domain": "b"},
            {"text": "hi", "domain": "a", "messages": talk}]
    with serving(upper) as stub:
        made = told(stub.method(Wrap, domains=("a",)).apply(frame(rows), Context(folder=tmp_path)))
        assert len(made) == 4 and len(stub.bodies) == 1
        with pytest.raises(UserError, match="no document of plain text in the domain 'c'"):
            stub.method(Wrap, domains=("c",)).apply(frame(rows), Context(folder=tmp_path))
        (tmp_path / "blank").mkdir()
        with pytest.raises(UserError, match="wrap has nothing to read"):
            stub.method(Wrap).apply(frame([{"text": " "}]), Context(folder=tmp_path / "blank"))


def test_settings_that_cannot_be() -> None:
    for wrong, why in (({"styles": ("wiki",)}, "no style 'wiki'"), ({"ratio": 3.0}, "number of styles, 2"),
                       ({"ratio": 0.0}, "ratio"), ({"styles": ("qa", "qa")}, "twice"),
                       ({"piece": 0}, "piece"),
                       ({"prompts": {"medium": "Say it."}}, "has no {text}")):
        with pytest.raises(ValueError, match=why):
            Wrap(**wrong)
    assert all("{text}" in p for p in PROMPTS.values()) and set(PROMPTS) == {"easy", "medium", "hard", "qa"}
