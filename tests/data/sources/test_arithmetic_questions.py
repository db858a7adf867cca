"""Questions of arithmetic: right answers, true levels, none twice."""
from __future__ import annotations

import json

import pytest

from trainwright.core.context import Context
from trainwright.corpus.documents import empty
from trainwright.data.sources.arithmetic_questions import ArithmeticQuestions, _reasons
from trainwright.evaluate.sums import Sums


def test_every_question_has_its_answer_and_none_comes_twice() -> None:
    method = ArithmeticQuestions(levels=(1, 3), operations="+-*", most=40)
    told = method.apply(empty(), Context(seed=3)).to_pydict()
    assert len(told["id"]) == len(set(told["id"])) == 80
    for messages, metadata in zip(told["messages"], told["metadata"], strict=True):
        asked, answer = (m["content"] for m in json.loads(messages))
        assert Sums().grade(asked, answer) == 1
        a, _, b = asked.removeprefix("What is ").removesuffix("?").split()
        assert max(len(a), len(b)) == json.loads(metadata)["level"]
    assert told["id"] == method.apply(empty(), Context(seed=3)).to_pydict()["id"]
    assert told["id"] != method.apply(empty(), Context(seed=4)).to_pydict()["id"]


def test_a_level_has_no_more_questions_than_there_are() -> None:
    assert len(list(ArithmeticQuestions(operations="+", most=1000).questions(1, 0))) == 100


def test_settings_that_make_nothing() -> None:
    with pytest.raises(ValueError, match="operations"):
        ArithmeticQuestions(operations="/")
    with pytest.raises(ValueError, match="levels"):
        ArithmeticQuestions(levels=(1, 1))


def test_a_sum_has_its_column_addition() -> None:
    assert _reasons(17, "+", 25) == {"rationale": "7 + 5 = 12; 1 + 2 + 1 = 4; 42"}
    assert _reasons(99, "+", 1) == {"rationale": "9 + 1 = 10; 9 + 0 + 1 = 10; 100"}
    assert _reasons(9, "-", 1) == {}
