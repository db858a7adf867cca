"""Instructions on the form of an answer as a task: what a program can check of how something is said.

    grade = 1    the answer follows all instructions on its form that the prompt gives
            0    it breaks one, or says nothing
            NaN  the prompt gives none that is known here

Instructions are whole sentences of the prompt, anywhere in it ("Use only lower case."):

    Use only lower case.               Use only capital letters.          Answer in JSON.
    Use exactly N words.               Use at most N words.               Use at least N words.
    Write exactly N lines.             Begin with "X".                    End with "X".
    Use the word "X".                  Do not use the word "X".           Use no commas.

As in "Instruction-Following Evaluation for Large Language Models" (IFEval, arXiv 2311.07911), whose
instructions are of this kind, an answer is right where all of its instructions are followed.
``task_questions`` makes corpora of such prompts; the level is the number of instructions, of which up to
three fit together. As an evaluator it measures the share ``follows_format`` with Wilson's interval of 95 %
(``_low``, ``_high``), ``_each``, the share of single instructions that are followed, and ``_ungraded``.

Not as the only reward where the content matters: the form is soon learned, and nothing else.

Errors: no tokenizer; no prompt that can be graded; conversations without a chat template.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from trainwright.core.method import Task
from trainwright.evaluate._solving import Asking, Question, Solved

Check = Callable[[str, str], bool]
"""From an answer and the number or the word of an instruction to whether it is followed."""


def _json(answer: str, _: str) -> bool:
    try:
        json.loads(answer)
    except (ValueError, RecursionError):
        return False
    return True


def _has(answer: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer, re.IGNORECASE) is not None


CHECKS: dict[str, Check] = {
    r"Use only lower case\.": lambda a, _: a == a.lower(),
    r"Use only capital letters\.": lambda a, _: a == a.upper(),
    r"Answer in JSON\.": _json,
    r"Use exactly (\d+) words?\.": lambda a, n: len(a.split()) == int(n),
    r"Use at most (\d+) words?\.": lambda a, n: len(a.split()) <= int(n),
    r"Use at least (\d+) words?\.": lambda a, n: len(a.split()) >= int(n),
    r"Write exactly (\d+) lines?\.": lambda a, n: len(a.strip().splitlines()) == int(n),
    r'Begin with "([^"]+)"\.': lambda a, x: a.strip().startswith(x),
    r'End with "([^"]+)"\.': lambda a, x: a.strip().endswith(x),
    r'Use the word "([^"]+)"\.': _has,
    r'Do not use the word "([^"]+)"\.': lambda a, x: not _has(a, x),
    r"Use no commas\.": lambda a, _: "," not in a,
}
WORDS = ("bread", "river", "stone", "cloud", "apple", "night")


class FollowsFormat(Asking, Task):
    """Answers that follow the instructions on their form, or do not."""

    makes: ClassVar[tuple[str, ...]] = ("follows_format", "follows_format_*")
    example: ClassVar[dict[str, Any]] = {
        "questions": ["Use no commas."],
        "new_tokens": 2,
    }

    def grade(self, prompt: str, answer: str) -> float:
        each = list(followed(prompt, answer))
        return float(all(each)) if each else math.nan

    def question(self, draw: random.Random, level: int) -> Question:
        """A prompt of ``level`` instructions, three at most, and an answer that follows them."""
        said = draw.sample(WORDS, draw.randrange(2, 6))
        length = f"Use exactly {len(said)} words."
        word = f'Use the word "{draw.choice(said)}".'
        case, shown = draw.choice(
            [
                ("Use only capital letters.", " ".join(said).upper()),
                (f'End with "{said[-1]}".', " ".join(said)),
            ]
        )
        told = draw.sample([length, word, case], min(level, 3))
        return Question(" ".join(["Say something.", *told]), shown if case in told else " ".join(said))

    def more(self, found: Sequence[Solved]) -> dict[str, float]:
        each = [one for f in found for one in followed(f.prompt, f.answer)]
        return {f"{self.name}_each": sum(each) / len(each)}


def followed(prompt: str, answer: str) -> Iterator[bool]:
    """Of each instruction in a prompt, whether the answer follows it; one that says nothing follows none."""
    for pattern, check in CHECKS.items():
        for found in re.finditer(rf"(?<!\S){pattern}", prompt):
            yield bool(answer.strip()) and check(answer, found[1] if found.lastindex else "")
