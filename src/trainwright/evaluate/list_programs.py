"""Lists and strings as a task: what a small program makes of a list, graded by running that program.

    grade = 1    the answer is the result, and nothing else (but for a full stop and spaces around it)
            0    it is anything else
            NaN  the prompt names no program that is known here

A prompt names a program and its list: "Reverse: d a c b". The programs are

    reverse  sort  first  last  double (each entry twice)  without (the list without its first entry)
    count (how many entries)   largest  sum        largest and sum of numbers, the others of letters

and results are written as the lists are, their entries apart by a space: "b c a d". ``task_questions`` makes
corpora of such prompts; the level is the length of the list. As an evaluator it measures the share
``list_programs`` with Wilson's interval of 95 % (``_low``, ``_high``), the same by program
(``list_programs/reverse`` …), and ``_ungraded``, the prompts that are left out.

Not a measure of what a model knows of programs: each is one line that a small model learns.

Errors: no tokenizer; no prompt that can be graded; conversations without a chat template.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from trainwright.core.method import Task
from trainwright.evaluate._solving import Asking, Question, Solved

PROGRAMS: dict[str, Callable[[list[str]], list[str]]] = {
    "reverse": lambda entries: entries[::-1],
    "sort": sorted,
    "first": lambda entries: entries[:1],
    "last": lambda entries: entries[-1:],
    "double": lambda entries: [e for e in entries for _ in range(2)],
    "without": lambda entries: entries[1:],
    "count": lambda entries: [str(len(entries))],
    "largest": lambda entries: [str(max(map(int, entries)))],
    "sum": lambda entries: [str(sum(map(int, entries)))],
}
NUMBERS = ("largest", "sum")
ASKED = re.compile(r"([A-Z][a-z]+): ((?:\w+ )*\w+)")
LETTERS = "abcdefgh"


class ListPrograms(Asking, Task):
    """Results of small programs on lists, right or wrong."""

    programs: tuple[str, ...] = ("reverse", "sort", "last")
    """Which programs ``task_questions`` asks for."""
    makes: ClassVar[tuple[str, ...]] = ("list_programs", "list_programs_*", "list_programs/*")
    example: ClassVar[dict[str, Any]] = {"questions": ["Reverse: a b c", "Sum: 3 4"], "new_tokens": 2}

    def __post_init__(self) -> None:
        for name in self.programs:
            if name not in PROGRAMS:
                raise ValueError(f"there is no program {name!r}; there are {', '.join(PROGRAMS)}")
        if not self.programs:
            raise ValueError("programs names one at least")

    def grade(self, prompt: str, answer: str) -> float:
        right = self.result(prompt)
        return math.nan if right is None else float(answer.strip().removesuffix(".") == right)

    def question(self, draw: random.Random, level: int) -> Question:
        """A prompt of a list of ``level`` entries, and its answer."""
        name = draw.choice(self.programs)
        entries = [str(draw.randrange(10)) if name in NUMBERS else draw.choice(LETTERS) for _ in range(level)]
        return Question(f"{name.capitalize()}: {' '.join(entries)}", " ".join(PROGRAMS[name](entries)))

    def result(self, prompt: str) -> str | None:
        """The answer to a prompt; None where none is known."""
        found = ASKED.search(prompt)
        name = found[1].lower() if found else ""
        entries = found[2].split() if found else []
        if name not in PROGRAMS or (name in NUMBERS and not all(map(str.isdecimal, entries))):
            return None
        return " ".join(PROGRAMS[name](entries))

    def more(self, found: Sequence[Solved]) -> dict[str, float]:
        by_program: dict[str, list[float]] = {}
        for one in found:
            if self.result(one.prompt) is not None:
                by_program.setdefault(one.prompt.partition(":")[0].lower(), []).append(one.grade)
        return {
            f"{self.name}/{name}": sum(grades) / len(grades) for name, grades in sorted(by_program.items())
        }
