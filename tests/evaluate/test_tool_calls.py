"""Calls of tools: one JSON object, of the right name, values and types."""

from __future__ import annotations

import json
import math
import random

from trainwright.evaluate._solving import Solved
from trainwright.evaluate.tool_calls import ToolCalls, parsed

ASKED = (
    'Tools: add_note(title: string, urgent: boolean); get_time(). Call add_note with title "a \\"b\\" and c" '
    "and urgent true."
)
RIGHT = {"name": "add_note", "arguments": {"title": 'a "b" and c', "urgent": True}}


def test_calls_are_compared_as_json() -> None:
    task = ToolCalls()
    right = json.dumps(RIGHT)
    turned = json.dumps(
        {"arguments": dict(reversed(RIGHT["arguments"].items())), "name": "add_note"}, indent=1
    )
    assert task.grade(ASKED, right) == task.grade(ASKED, turned) == 1
    wrong = [
        right.replace("true", "1"),
        right.replace("true", '"true"'),
        right.replace("add_note", "get_time"),
        right.replace("urgent", "rush"),
        f"Sure: {right}",
        right[:-1],
        "",
        "[]",
        "[" * 100_000,
    ]
    assert [task.grade(ASKED, one) for one in wrong] == [0] * len(wrong)
    assert task.grade("Tools: get_time(). Call get_time.", '{"name": "get_time", "arguments": {}}') == 1
    assert math.isnan(task.grade("Call me.", right))


def test_its_questions_have_the_answers_that_it_grades() -> None:
    task, draw = ToolCalls(functions=3), random.Random(0)
    for level in (0, 1, 3):
        for _ in range(20):
            one = task.question(draw, level)
            assert task.grade(one.prompt, one.answer) == 1
            assert len(json.loads(one.answer)["arguments"]) == level and one.prompt.count("(") == 3


def test_it_tells_how_many_answers_are_calls_at_all() -> None:
    right = json.dumps(RIGHT)
    found = [
        Solved(ASKED, right, 1.0),
        Solved(ASKED, right.replace("true", "1"), 0.0),
        Solved(ASKED, "no", 0.0),
        Solved("?", right, math.nan),
    ]
    assert ToolCalls().more(found) == {"tool_calls_parsed": 2 / 3}
    assert parsed('{"name": "x"}') is None
