r"""Results of mathematics: where they stand in a text, and when two are equal."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from trainwright.check import tiny
from trainwright.core.errors import UserError
from trainwright.evaluate import math_answers
from trainwright.evaluate.math_answers import MathAnswers, equal, result

SLOW = """
import json, sys, time
print(json.dumps({"answer": None}), flush=True)
for line in sys.stdin:
    told = json.loads(line)
    if "hang" in told["answer"]: time.sleep(100)
    said = {"failed": "no"} if "fail" in told["answer"] else {"answer": told["gold"] == told["answer"]}
    print(json.dumps(said), flush=True)
"""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("She has 3 + 4 = 7 eggs.\n#### 7", "7"),
        (r"So $x = \boxed{\frac{1}{2}}$, not \boxed 3.", r"\frac{1}{2}"),
        (r"\boxed{1}, or rather \boxed{2}.", "2"),
        ("It costs $1,250.50 in 2 parts", "2"),
        ("1,250.50", "1,250.50"),
        ("nothing", ""),
        (r"\boxed{open", ""),
        ("#### 1,000", "1,000"),
    ],
)
def test_a_result_stands_in_the_box_or_behind_the_mark_or_last(text: str, found: str) -> None:
    assert result(text) == found


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1,000", "1000.0", True),
        ("3/4", "0.75", True),
        ("$5", "5 dollars", True),
        ("50%", "50", True),
        ("-2", "2", False),
        (r"\frac{1}{2}", r"\frac {1}{2}", True),
        ("x", "y", False),
        ("", "", False),
        ("7", "seven", False),
        ("1/0", "1/0", True),
    ],
)
def test_results_are_equal_as_numbers_or_letter_by_letter(one: str, other: str, same: bool) -> None:
    assert equal(one, other) == equal(other, one) == same


def test_the_right_one_is_the_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"How many?": {"answer": "3 and 4 is 7\n#### 7"}, "Why?": {"answer": "Because."}}
    monkeypatch.setattr(math_answers, "facts", lambda ctx: told)
    grade = MathAnswers().grader(tiny.context(tiny.place()))
    assert [grade("How many?", said) for said in ("It is 7.", "#### 7.0", "8", "7, not 8", "")] == [
        1,
        1,
        0,
        0,
        0,
    ]
    assert math.isnan(grade("Why?", "7")) and math.isnan(grade("Who?", "7"))
    with pytest.raises(UserError, match="no document of the corpus has a result"):
        monkeypatch.setattr(math_answers, "facts", lambda ctx: {"Why?": {"answer": "Because."}})
        MathAnswers().grader(tiny.context(tiny.place()))


def test_a_comparison_that_hangs_or_fails_is_no_wrong_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "worker.py").write_text(SLOW)
    monkeypatch.setattr(math_answers, "WORKER", tmp_path / "worker.py")
    monkeypatch.setattr(math_answers.importlib.util, "find_spec", lambda name: True)
    ctx = tiny.context(tiny.place())
    task = MathAnswers(by="expression", questions=("q",), answers={"q": "7"}, seconds=0.3)
    grade = task.grader(ctx)
    said = [grade("q", one) for one in (r"\boxed{7}", "hang", r"\boxed{8}", "fail")]
    assert said[0] == 1 and said[2] == 0 and math.isnan(said[1]) and math.isnan(said[3])
    assert [value for value, _ in ctx.notes["math_answers/timeout"]] == [0, 1, 0, 0]


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_answers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"trainwright\[math\]"):
        MathAnswers(by="expression").grader(tiny.context(tiny.place()))


def test_expressions_are_equal_as_mathematics() -> None:
    pytest.importorskip("math_verify")
    ctx = tiny.context(tiny.place())
    grade = MathAnswers(by="expression", questions=("q",), answers={"q": r"\boxed{\frac{1}{2}}"}).grader(ctx)
    assert [grade("q", said) for said in ("$0.5$", r"\boxed{\frac{2}{4}}", "$0.6$")] == [1, 1, 0]
