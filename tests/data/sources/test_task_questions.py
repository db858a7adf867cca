"""Questions of a task: right answers, none twice, the same for a seed; tasks that make none are refused."""

from __future__ import annotations

import json

import pytest

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.documents import empty
from trainwright.data.sources.task_questions import TaskQuestions
from trainwright.evaluate.list_programs import ListPrograms


def test_every_question_has_its_answer_and_none_comes_twice() -> None:
    method = TaskQuestions(task={"use": "list_programs"}, levels=(2, 4), most=30, domain="lists")
    told = method.apply(empty(), Context(seed=3)).to_pydict()
    assert len(set(told["id"])) == len(set(told["text"])) == 60 and set(told["domain"]) == {"lists"}
    for messages, metadata in zip(told["messages"], told["metadata"], strict=True):
        asked, answer = (m["content"] for m in json.loads(messages))
        assert ListPrograms().grade(asked, answer) == 1
        assert len(asked.split()) - 1 == json.loads(metadata)["level"]
    assert told == method.apply(empty(), Context(seed=3)).to_pydict()
    assert told["text"] != method.apply(empty(), Context(seed=4)).to_pydict()["text"]


def test_a_level_ends_where_nothing_new_is_drawn() -> None:
    task = {"use": "list_programs", "programs": ["last"]}
    told = TaskQuestions(task=task, levels=(1,), most=100).apply(empty(), Context()).to_pydict()
    assert len(told["id"]) == 8  # one for each letter


def test_a_task_that_makes_none_is_refused() -> None:
    with pytest.raises(UserError, match="task_questions: sums makes no questions"):
        TaskQuestions(task={"use": "sums"}).apply(empty(), Context())
