"""The search and its pairs by hand: who is searched for, which child is taken, what a pair shares."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from trainwright.align import _drawn
from trainwright.align._drawn import Step
from trainwright.align.itool import Itool, Node, first_value, overlap
from trainwright.check import documents
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.selecting import columns


def turns(answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]


def test_the_weakest_of_calls_and_of_other_answers_are_taken() -> None:
    asked = {
        "a": turns("[f()]"),
        "b": turns('{"name": 1}'),
        "c": turns("x"),
        "d": turns("y"),
        "e": turns("z"),
    }
    found = Itool(share=0.3).deficient(asked, {"a": 9.0, "b": 2.0, "c": 100.0, "d": 300.0, "e": 200.0})
    assert found == ["a", "d"]


def test_a_first_value_is_the_end_and_the_overlap() -> None:
    assert overlap("a b c", "c d") == 0.5 and overlap("", "a") == 0
    assert first_value("x f(1)]", "y f(1)]") == pytest.approx(0.1 + 0.5 - 0.5)
    assert first_value("x f(1)", "y f(1)]") == pytest.approx(-0.1 + 0.0 - 0.5)


def test_a_child_is_worth_its_value_and_that_it_was_seldom_visited() -> None:
    parent, child = Node(visits=5), Node(value=0.6, visits=2, prob=0.4)
    assert Itool(explore=2).worth(child, parent) == pytest.approx(0.2 + 2 * 0.4 * math.sqrt(math.log(5) / 3))


def test_it_goes_down_to_a_node_that_can_grow() -> None:
    method = Itool(depth=2)
    ended, deep = Node(value=9, ended=True, depth=1), Node(value=8, depth=1, children=[Node(depth=2)])
    low = Node(value=1, depth=1)
    root = Node(visits=1, children=[ended, deep, low])
    assert method.selected(root) == [root, low]
    assert method.selected(Node(visits=1, children=[ended, deep])) is None
    assert method.selected(empty := Node()) == [empty]


def test_a_pair_is_the_best_and_the_worst_step_behind_one_beginning() -> None:
    good, bad, middle = Node("f(", "f(", value=0.4), Node("g h", "g h", value=-0.2), Node("k", "k", value=0.0)
    good.children = [Node("f(1)", "1)", value=0.3), Node("f(2)", "2)", value=0.25)]
    root = Node(children=[bad, good, middle])
    assert list(Itool(gap=0.1).pairs(root)) == [("", "f(", "g h")]
    assert list(Itool(gap=0.04).pairs(root)) == [("", "f(", "g h"), ("f(", "1)", "2)")]
    assert list(Itool(gap=0.04, least=0.35).pairs(root)) == [("", "f(", "g h")]
    alike = Node(children=[Node("a b", "a b", value=1), Node("b a", "b a", value=0)])
    assert list(Itool().pairs(alike)) == [] and len(list(Itool(alike=1.0).pairs(alike))) == 1


class Talker:
    """Draws "good" and "bad" in turn; an answer ends with its second step."""

    def perplexities(self, asked: dict[str, Any], batch_size: int) -> dict[str, float]:
        return {name: float(i) for i, name in enumerate(asked)}

    def prompt(self, turns: list[dict[str, Any]]) -> str:
        return f"<{turns[-1]['content']}>"

    def steps(
        self,
        asked: dict[str, Any],
        samples: int,
        new: int,
        warm: float,
        size: int,
        begun: dict[str, str],
        key: str,
    ) -> dict[str, list[Step]]:
        second = any(begun.values())
        return {
            name: [Step(("good ", "bad ")[i % 2], "." if second else "", 0.5, second) for i in range(samples)]
            for name in asked
        }


def made(folder: Path, monkeypatch: Any, **settings: Any) -> list[dict[str, Any]]:
    monkeypatch.setattr(_drawn.Writer, "of", classmethod(lambda cls, *rest: Talker()))
    ctx = Context(folder=folder, inputs={"model": [folder]})
    given = {"task": {"use": "matches", "pattern": "(good ?)+"}, "share": 0.1, "iterations": 3} | settings
    rows = columns(
        Itool(**given).apply(documents.table(), ctx),
        "id",
        "origin",
        "domain",
        "prompt",
        "chosen",
        "rejected",
        "messages",
    ).to_pylist()
    return [row for row in rows if row["domain"] == "steps"]


def test_good_steps_are_preferred_to_bad_ones(tmp_path: Path, monkeypatch: Any) -> None:
    asked = {
        row["id"]: json.loads(row["messages"])[0]["content"] for row in documents.rows() if row["messages"]
    }
    found = made(tmp_path, monkeypatch)
    assert {row["origin"] for row in found} <= set(asked) and len({row["origin"] for row in found}) == 4
    for row in found:
        prompt, chosen, rejected = (json.loads(row[n]) for n in ("prompt", "chosen", "rejected"))
        start = f"<{asked[row['origin']]}>"
        assert prompt in (start, start + "good ", start + "bad ")
        assert chosen.startswith("good") and rejected.startswith("bad")
        assert chosen.endswith(".") == (prompt != start), "a step that ends the answer ends"


def test_what_it_refuses(tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(UserError, match="no two steps are far enough apart"):
        made(tmp_path, monkeypatch, least=90.0)
