"""Calls of tools as a task: JSON that calls one of the functions of a prompt with what is asked.

    grade = 1    the answer is one JSON object {"name": …, "arguments": {…}} that equals the right call
            0    it is anything else, or that with other words around it
            NaN  the prompt is none of this task

A prompt lists functions with the types of their arguments, and asks for one of them with values in words:

    Tools: add_note(title: string, urgent: boolean); get_time(city: string). Call add_note with title "bread"
    and urgent true.

so that the right call follows from the prompt alone. Objects are compared as JSON: the order of keys and
spaces do not matter, types do (``"3"`` is not ``3``). ``task_questions`` makes corpora of such prompts; the
level is the number of arguments of the function that is asked for. As an evaluator it measures the share
``tool_calls`` with Wilson's interval of 95 % (``_low``, ``_high``), ``_parsed``, the share of answers that
are JSON of that form, and ``_ungraded``.

Not a test of choosing tools for a wish in free words: functions and values are named. Nothing is called.

Errors: no tokenizer; no prompt that can be graded; conversations without a chat template.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from trainwright.core.method import Task
from trainwright.evaluate._solving import Asking, Question, Solved

VERBS, NOUNS = ("add", "get", "set", "find", "drop"), ("note", "time", "task", "file", "user", "price")
TYPES = ("string", "integer", "boolean")
WORDS = ("bread", "red", "north", "milk", "blue", "tea")
FIELDS = ("title", "count", "urgent", "city", "size", "label")
ASKED = re.compile(r"Tools: .*?\. Call (\w+)(?: with (.*))?\.$", re.DOTALL)
VALUE = re.compile(r'(\w+) ("(?:[^"\\]|\\.)*"|-?\d+|true|false)')


class ToolCalls(Asking, Task):
    """Calls of functions as JSON, right or wrong."""

    functions: int = 2
    """Functions that a prompt of ``task_questions`` lists."""
    makes: ClassVar[tuple[str, ...]] = ("tool_calls", "tool_calls_*")
    example: ClassVar[dict[str, Any]] = {
        "questions": ["Tools: f(n: integer). Call f with n 3."],
        "new_tokens": 2,
    }

    def __post_init__(self) -> None:
        if not 1 <= self.functions <= len(VERBS) * len(NOUNS):
            raise ValueError(f"functions must be from 1 to {len(VERBS) * len(NOUNS)}, not {self.functions}")

    def grade(self, prompt: str, answer: str) -> float:
        right = call_of(prompt)
        return math.nan if right is None else float(same(parsed(answer), right))

    def question(self, draw: random.Random, level: int) -> Question:
        """A prompt whose function has ``level`` arguments, and the call."""
        names = draw.sample([f"{verb}_{noun}" for verb in VERBS for noun in NOUNS], self.functions)
        made = {
            name: {field: draw.choice(TYPES) for field in draw.sample(FIELDS, min(level, len(FIELDS)))}
            for name in names
        }
        name = draw.choice(names)
        values = {field: _value(kind, draw) for field, kind in made[name].items()}
        listed = "; ".join(
            f"{one}({', '.join(f'{f}: {kind}' for f, kind in fields.items())})"
            for one, fields in made.items()
        )
        told = [f"{field} {json.dumps(value)}" for field, value in values.items()]
        said = " and ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)
        return Question(
            f"Tools: {listed}. Call {name}{' with ' if said else ''}{said}.",
            json.dumps({"name": name, "arguments": values}),
        )

    def more(self, found: Sequence[Solved]) -> dict[str, float]:
        graded = [one for one in found if not math.isnan(one.grade)]
        return {f"{self.name}_parsed": sum(parsed(one.answer) is not None for one in graded) / len(graded)}


def call_of(prompt: str) -> dict[str, Any] | None:
    """The call that a prompt asks for."""
    found = ASKED.search(prompt.strip())
    if found is None:
        return None
    return {"name": found[1], "arguments": {f: json.loads(v) for f, v in VALUE.findall(found[2] or "")}}


def parsed(answer: str) -> dict[str, Any] | None:
    """The call in an answer that is one, and nothing else."""
    try:
        made = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    fits = isinstance(made, dict) and made.keys() == {"name", "arguments"}
    return made if fits and isinstance(made["arguments"], dict) else None


def same(given: dict[str, Any] | None, right: dict[str, Any]) -> bool:
    """Whether two calls are the same as JSON, where true is not 1."""

    def written(call: dict[str, Any]) -> str:
        return json.dumps(call, sort_keys=True)

    return given is not None and written(given) == written(right)


def _value(kind: str, draw: random.Random) -> Any:
    values = {"string": draw.choice(WORDS), "integer": draw.randrange(100), "boolean": draw.random() < 0.5}
    return values[kind]
