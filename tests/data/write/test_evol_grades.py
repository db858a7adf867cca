"""Variants are made one from another, ranked at once, and become what a scorer learns from."""
from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.data.filter.test_score_evol import talk
from tests.data.frames import frame, told
from tests.lm.writing.stub_writer import serving
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.data.filter.score_evol import PROMPTS
from trainwright.data.write.evol_grades import EvolGrades, ranked


def rule(prompt: str, body: dict[str, Any]) -> str:
    """Evolving adds a plus; the grade is one more than the number of pluses."""
    if prompt.startswith("Compare"):
        texts = re.findall(r"^\[(\d)\]\n(.*)$", prompt, re.M)
        return "```json\n" + json.dumps({n: 1 + text.count("+") for n, text in texts}) + "\n```"
    return prompt.split("\n")[-1] + "+"


def documents() -> Any:
    return frame([{"id": "a", "messages": talk("Sort this", "Done", "More", "No"), "origin": "root"},
                  {"id": "b", "messages": talk("Why?", "So")}, {"id": "plain", "text": "left alone"}])


@pytest.mark.parametrize("what", ["complexity", "quality"])
def test_every_variant_is_graded_beside_the_others(tmp_path: Path, what: str) -> None:
    with serving(rule) as stub:
        made = told(stub.method(EvolGrades, what=what).apply(documents(), Context(folder=tmp_path)))
    assert set(made) == {"plain"} | {f"{name}#{what}/{m}" for name in "ab" for m in range(6)}
    for m in range(6):
        user, assistant = json.loads(made[f"b#{what}/{m}"]["messages"])
        asked = {"instruction": "Why?", "response": "So"}
        asked |= {"instruction" if what == "complexity" else "response": ("Why?", "So")[what == "quality"]
                  + "+" * m}
        assert user["content"] == PROMPTS[what].format(**asked) and assistant["content"] == str(m + 1)
    assert {row["origin"] for name, row in made.items() if name[0] == "a"} == {"root"}
    rankings = [p for p in stub.prompts if p.startswith("Compare")]
    assert len(rankings) == 2 and all(len(re.findall(r"^\[\d\]$", p, re.M)) == 6 for p in rankings)
    orders = [re.findall(r"^\[\d\]\n(.*)$", p, re.M) for p in rankings]
    assert any(order != sorted(order, key=len) for order in orders), "shown in an order that is drawn"


def test_grades_that_cannot_be_read_leave_a_seed_out(tmp_path: Path) -> None:
    def half(prompt: str, body: dict[str, Any]) -> str:
        return "I like them all." if prompt.startswith("Compare") and "Why" in prompt else rule(prompt, body)

    ctx = Context(folder=tmp_path)
    with serving(half) as stub:
        made = told(stub.method(EvolGrades, what="complexity", variants=2).apply(documents(), ctx))
    assert {name.partition("#")[0] for name in made} == {"a", "plain"}
    assert ctx.notes["evol_grades/left_out"] == [(1.0, 1.0)]
    assert ranked('{"1": 2, "2": 6}', 2) == [2, 6] and ranked('{"1": 2}', 2) == []
    assert ranked('{"1": ' + "[" * 100_000 + "}", 1) == []
    assert ranked('{"1": 2, "2": 7}', 2) == ranked('{"1": 2.5, "2": 3}', 2) == ranked("none", 2) == []


def test_mistakes_are_said(tmp_path: Path) -> None:
    with serving(lambda prompt, body: "no") as stub:
        with pytest.raises(UserError, match="ranked the variants of none of 2"):
            told(stub.method(EvolGrades, what="quality").apply(documents(), Context(folder=tmp_path)))
        (other := tmp_path / "o").mkdir()
        with pytest.raises(UserError, match="no conversation came in"):
            stub.method(EvolGrades, what="quality").apply(frame([{"id": "x"}]), Context(folder=other))
    for prompts, why in (({"ask": "x"}, "no prompt 'ask'"), ({"grade": "{instruction}"}, "lacks {response}"),
                         ({"rank": "x"}, "lacks {texts}")):
        with pytest.raises(ValueError, match=re.escape(why) if "{" in why else why):
            EvolGrades(what="quality", prompts=prompts)
