"""Instructions on form: each by an answer that follows it and one that does not."""

from __future__ import annotations

import math
import random

import pytest

from trainwright.evaluate._solving import Solved
from trainwright.evaluate.follows_format import CHECKS, FollowsFormat, followed

CASES = [
    ("Use only lower case.", "ab c", "Ab c"),
    ("Use only capital letters.", "AB", "Ab"),
    ("Answer in JSON.", '{"a": [1]}', "{a: 1}"),
    ("Use exactly 2 words.", "a b", "a b c"),
    ("Use at most 2 words.", "a", "a b c"),
    ("Use at least 2 words.", "a b c", "a"),
    ("Write exactly 2 lines.", "a\nb\n", "a b"),
    ('Begin with "Well".', "Well, yes", "Yes, well"),
    ('End with "end".', "the end", "the end."),
    ('Use the word "stone".', "A Stone!", "stones"),
    ('Do not use the word "stone".', "stones", "a stone"),
    ("Use no commas.", "a b", "a, b"),
]


@pytest.mark.parametrize(("told", "good", "bad"), CASES)
def test_an_instruction_is_followed_or_not(told: str, good: str, bad: str) -> None:
    task, prompt = FollowsFormat(), f"Say something. {told}"
    assert (task.grade(prompt, good), task.grade(prompt, bad), task.grade(prompt, " ")) == (1, 0, 0)
    assert len(CASES) == len(CHECKS)


def test_all_of_them_count() -> None:
    task, prompt = FollowsFormat(), "Use only lower case. Use exactly 2 words. Say something."
    assert [task.grade(prompt, a) for a in ("a b", "A b", "a b c")] == [1, 0, 0]
    assert list(followed(prompt, "A b")) == [False, True]
    assert math.isnan(task.grade("Say something.", "a"))
    assert math.isnan(task.grade("Never Use no commas. in", "a")) is False
    found = [Solved(prompt, "A b", 0.0), Solved(prompt, "a b", 1.0)]
    assert task.more(found) == {"follows_format_each": 0.75}


def test_its_questions_have_the_answers_that_it_grades() -> None:
    task, draw = FollowsFormat(), random.Random(1)
    for level in (1, 2, 3):
        for _ in range(30):
            one = task.question(draw, level)
            assert task.grade(one.prompt, one.answer) == 1 and len(list(followed(one.prompt, "x"))) == level
