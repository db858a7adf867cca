"""Programs on lists: what each makes, and that nothing but its result is right."""

from __future__ import annotations

import math
import random

import pytest

from trainwright.evaluate._solving import Solved
from trainwright.evaluate.list_programs import PROGRAMS, ListPrograms


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Reverse: d a c b", "b c a d"),
        ("Sort: d a c b", "a b c d"),
        ("First: d a", "d"),
        ("Last: d a", "a"),
        ("Double: d a", "d d a a"),
        ("Without: d a c", "a c"),
        ("Count: d a c", "3"),
        ("Largest: 3 9 4", "9"),
        ("Sum: 3 9 4", "16"),
    ],
)
def test_a_program_has_its_result(prompt: str, answer: str) -> None:
    task = ListPrograms()
    assert task.grade(prompt, answer) == task.grade(prompt, f" {answer}.\n") == 1
    assert task.grade(prompt, f"{answer} or so") == task.grade(prompt, "") == 0


def test_what_names_no_program_has_no_grade() -> None:
    assert all(math.isnan(ListPrograms().grade(p, "a")) for p in ("Reverse", "Fold: a b", "Sum: a b"))


def test_its_questions_have_the_answers_that_it_grades() -> None:
    task, draw = ListPrograms(programs=tuple(PROGRAMS)), random.Random(3)
    made = [task.question(draw, 4) for _ in range(50)]
    assert all(task.grade(q.prompt, q.answer) == 1 and len(q.prompt.split()) == 5 for q in made)
    assert {q.prompt.partition(":")[0].lower() for q in made} == set(PROGRAMS)
    with pytest.raises(ValueError, match="there is no program 'fold'"):
        ListPrograms(programs=("fold",))


def test_it_tells_the_rate_of_each_program() -> None:
    found = [Solved("Last: a b", "b", 1.0), Solved("Last: a b", "a", 0.0), Solved("Sum: 1 2", "3", 1.0)]
    assert ListPrograms().more(found) == {"list_programs/last": 0.5, "list_programs/sum": 1.0}
