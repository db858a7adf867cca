r"""Results of mathematics as a task: the last number of an answer, or what is in its box.

    grade = 1    the result of the answer is that of the document
            0    it is another one, or there is none
            NaN  no document asks this, it has no result, or the comparison failed or ran out of time

The result of a text, an answer or a document's solution, is what stands in its last \boxed{…} (as in MATH),
or else behind its last ``####`` (as in GSM8K), or else its last number. The right one is the document's
metadata ``answer``, or the result of its last answer. So files of both kinds are read by ``text``: GSM8K's as
it is, MATH's with ``columns = { prompt = "problem", answer = "solution" }``.

    by = "number"       equal as numbers: 1,000 is 1000.0, 3/4 is 0.75, $ and % and units behind do not
                        count; what is no number must be the same text, without spaces
    by = "expression"   equal as mathematics, by the package math_verify (extra ``math``), in a process of
                        its own that is killed after ``seconds``: a comparison that hangs is no wrong
                        answer, and is counted as ``math_answers/timeout``

As an evaluator it measures the share ``math_answers`` with Wilson's interval of 95 % (``_low``, ``_high``)
and ``_ungraded``. Not for proofs, nor where several results are right.

Errors: ``expression`` without the package; no document with a result; what ``sums`` says of prompts.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable
from dataclasses import field
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Literal

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Task
from trainwright.core.settings import Count, Seconds
from trainwright.evaluate._solving import ANSWER, Solving, facts
from trainwright.lm.apart import Apart, Failed

WORKER = Path(__file__).with_name("_math_worker.py")
NUMBER = re.compile(r"-?\$?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d)(?:/\d+)?)")
BOX = r"\boxed{"


class MathAnswers(Solving, Task):
    """Results that are equal to those of the documents, or are not."""

    by: Literal["number", "expression"] = "number"
    """How results are compared."""
    answers: dict[str, str] = field(default_factory=dict)
    """Right answers by question, beside those of the documents."""
    seconds: Seconds = 5.0
    """Of a comparison of expressions, at most."""
    new_tokens: Count = 256
    """Tokens of an answer at most."""
    makes: ClassVar[tuple[str, ...]] = ("math_answers", "math_answers_*")
    example: ClassVar[dict[str, Any]] = {
        "questions": ["What is 3 + 4?"],
        "answers": {"What is 3 + 4?": "7"},
        "new_tokens": 2,
    }

    def grade(self, prompt: str, answer: str) -> float:
        """By the answers of the settings, as numbers; ``grader`` knows those of the documents."""
        right = result(self.answers.get(prompt, ""))
        return float(equal(right, result(answer))) if right else math.nan

    def grader(self, ctx: Context) -> Callable[[str, str], float]:
        if self.by == "expression" and importlib.util.find_spec("math_verify") is None:
            raise UserError(
                'math_answers: by = "expression" needs math-verify: pip install "trainwright[math]".'
            )
        told = {} if self.answers and self.questions else facts(ctx)
        gold = {asked: result(str(one.get(ANSWER, ""))) for asked, one in told.items()}
        gold |= {asked: result(said) for asked, said in self.answers.items()}
        if not any(gold.values()):
            raise UserError("math_answers: no document of the corpus has a result.")
        worker = Apart(WORKER, self.seconds)

        def grade(prompt: str, answer: str) -> float:
            right = gold.get(prompt)
            if not right:
                return math.nan
            if self.by == "number":
                return float(equal(right, result(answer)))
            return self._verified(worker, right, answer, ctx)

        return grade

    def _verified(self, worker: Apart, right: str, answer: str, ctx: Context) -> float:
        late, found = 0.0, None
        try:
            said = boxed(answer)
            found = worker.ask({"gold": f"${right}$", "answer": f"${said}$" if said else answer})
        except TimeoutError:
            late = 1.0
        except Failed:
            pass
        ctx.note("math_answers/timeout", late)
        return math.nan if found is None else float(found)


def result(text: str) -> str:
    """The result of a text; empty where it has none."""
    if (found := boxed(text)) is not None:
        return found.strip()
    _, mark, behind = text.rpartition("####")
    if mark:
        return behind.strip()
    numbers = [n for n in NUMBER.findall(text) if any(map(str.isdecimal, n))]
    return numbers[-1] if numbers else ""


def boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{…} of a text."""
    start, depth = text.rfind(BOX), 1
    if start < 0:
        return None
    for at in range(start + len(BOX), len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if not depth:
            return text[start + len(BOX) : at]
    return None


def equal(right: str, given: str) -> bool:
    """Whether two results are the same number, or else the same text but for spaces."""
    one, other = value(right), value(given)
    if one is not None or other is not None:
        return one == other
    return "".join(right.split()) == "".join(given.split()) != ""


def value(text: str) -> Fraction | None:
    """The number that a result is, without signs of money, thousands and units; None where it is none."""
    found = re.fullmatch(r"(-?)\$?([\d,]*\.?\d+(?:/\d+)?)\.?\s*(?:%|\\%|[a-zA-Z]+)?", text.strip())
    if found is None:
        return None
    try:
        return Fraction(found[1] + found[2].replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None
