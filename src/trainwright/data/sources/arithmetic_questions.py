"""Questions of arithmetic with their answers, made here, by levels of difficulty.

Chat documents: "What is 17 + 25?" and "42". Level n has two whole numbers from 0 on, the longer of n digits.
No question comes twice, and the same seed makes the same ones. ``sums`` grades answers to them. Of a sum the
metadata have a ``rationale``, the column addition digit by digit (``with_rationales``).

Not for teaching a large model to calculate: it is a small world in which every answer can be checked.

Errors: more questions of a level than there are is no error: all of them are made.
"""
from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from trainwright.core.method import Curate
from trainwright.core.settings import Between, Count

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context
    from trainwright.corpus.sources import Row

DIGITS = 9
"""Most digits of a number."""


class ArithmeticQuestions(Curate):
    """Chats of one question and its answer, a number."""

    levels: tuple[Annotated[int, Between(1, DIGITS)], ...] = (1, 2)
    """Digits of the longer number, one level each."""
    operations: str = "+-"
    """Some of + - and *."""
    most: Count = 1000
    """Questions of a level at most."""
    domain: str = "arithmetic"
    """Domain of the conversations."""
    example: ClassVar[dict[str, Any]] = {"most": 10}

    def __post_init__(self) -> None:
        if not self.levels or len(set(self.levels)) < len(self.levels):
            raise ValueError("levels names one level at least, and none twice")
        if not self.operations or set(self.operations) - set("+-*"):
            raise ValueError(f"operations are some of + - and *, not {self.operations!r}")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.sources import table, union
        rows = list(self._rows(ctx.seed))
        return union(documents, table(self.name, [partial(iter, rows)]))

    def _rows(self, seed: int) -> Iterator[Row]:
        from trainwright.corpus.sources import document
        for level in self.levels:
            for a, operation, b in self.questions(level, seed):
                answer = {"+": a + b, "-": a - b, "*": a * b}[operation]
                messages = [{"role": "user", "content": f"What is {a} {operation} {b}?"},
                            {"role": "assistant", "content": str(answer)}]
                yield document(id=f"{self.domain}/{a}{operation}{b}", domain=self.domain, source="made here",
                               metadata={"level": level} | _reasons(a, operation, b), messages=messages)

    def questions(self, level: int, seed: int) -> Iterator[tuple[int, str, int]]:
        """The terms of a level, each once."""
        end, short = 10**level, 10**(level - 1) if level > 1 else 0
        kinds = "".join(dict.fromkeys(self.operations))
        every = end * end * len(kinds)
        draw = random.Random(f"{seed}/{level}/{kinds}")
        places = draw.sample(range(every), min(every, 2 * self.most + 8))
        found = [(p // end % end, kinds[p // end // end], p % end) for p in places]
        yield from [one for one in found if max(one[0], one[2]) >= short][:self.most]


def _reasons(a: int, operation: str, b: int) -> dict[str, str]:
    """The column addition of a sum: ``7 + 5 = 12; 1 + 2 + 1 = 4; 42``."""
    if operation != "+":
        return {}
    steps, carry = [], 0
    for place in range(max(len(str(a)), len(str(b)))):
        digits = [one // 10**place % 10 for one in (a, b)]
        total = sum(digits) + carry
        steps.append(f"{digits[0]} + {digits[1]}{f' + {carry}' if carry else ''} = {total}")
        carry = total // 10
    return {"rationale": "; ".join([*steps, str(a + b)])}
