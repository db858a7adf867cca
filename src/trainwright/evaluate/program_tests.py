"""Programs as a task: an answer is right if it passes the tests that its document has.

    grade = 1    the program in the answer runs, and then the tests of the document do, to their end
            0    it fails, has no program, or takes longer than its limits allow
            NaN  no document asks this

The program is what stands in the answer's last block of ``` … ```, or else all of the answer; with
``complete`` it goes on where the prompt, itself a beginning of a program, ends (as in HumanEval). The tests
are the document's metadata ``tests``: Python, run behind the program, in which a failing assertion fails. So
a file of JSON lines with ``question``, ``answer`` and ``tests``, read by ``text``, is a corpus for it;
``tests`` of the settings are those of documents that have none.

Programs that a model wrote run on this machine, in a process of their own that has little to reach and is
ended with all that it started (``lm/sandbox.py``). What the system does not let be taken away from them, such
as the network, is said on the page of the run. As an evaluator it measures the share ``program_tests`` with
Wilson's interval of 95 % (``_low``, ``_high``) and ``_ungraded``; ``program_tests/timeout`` is logged, the
share of programs whose time was up: wrong answers, too, but perhaps of a machine that is too slow.

Not where somebody may send programs in order to break in: the kernel is shared.

Errors: no document with tests; what ``sums`` says of prompts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, ClassVar

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Task
from trainwright.core.settings import Count
from trainwright.evaluate._solving import Solving, facts
from trainwright.lm.sandbox import Limits, Ran, run, warning

BLOCK = re.compile(r"```[a-zA-Z0-9]*[ \t]*\n(.*?)```", re.DOTALL)


class ProgramTests(Solving, Task):
    """Programs that pass the tests of their documents, or do not."""

    tests: str = ""
    """Tests of the programs whose documents have none."""
    complete: bool = False
    """Whether an answer goes on where its prompt ends."""
    limits: Limits = Limits()
    """What a program may use."""
    new_tokens: Count = 256
    """Tokens of an answer at most."""
    makes: ClassVar[tuple[str, ...]] = ("program_tests", "program_tests_*")
    example: ClassVar[dict[str, Any]] = {
        "tests": "assert True",
        "domains": ["chat"],
        "most": 2,
        "new_tokens": 2,
    }

    def grade(self, prompt: str, answer: str) -> float:
        """By the tests of the settings; ``grader`` knows those of the documents."""
        return float(self.ran(prompt, answer, self.tests).how == "passed") if self.tests else math.nan

    def grader(self, ctx: Context) -> Callable[[str, str], float]:
        tests = {asked: str(told.get("tests") or self.tests) for asked, told in facts(ctx).items()}
        if not any(tests.values()):
            raise UserError(
                "program_tests: no document of the corpus has tests in its metadata, and tests says none."
            )

        def grade(prompt: str, answer: str) -> float:
            if not tests.get(prompt):
                return math.nan
            ran = self.ran(prompt, answer, tests[prompt])
            ctx.note("program_tests/timeout", float(ran.how == "timeout"))
            if said := warning(ran.open):
                ctx.show("program_tests", said)
            return float(ran.how == "passed")

        return grade

    def ran(self, prompt: str, answer: str, tests: str) -> Ran:
        """What became of the program in an answer."""
        blocks = BLOCK.findall(answer)
        program = blocks[-1] if blocks else answer
        return run(prompt + program if self.complete else program, tests, self.limits)
