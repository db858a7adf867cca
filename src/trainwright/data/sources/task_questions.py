"""Questions of a task with their right answers, made here, by levels of difficulty.

Chat documents: a user's question and the answer that the task grades as right, its level in the metadata. Of
each level ``most`` questions are drawn; none comes twice, and the same seed makes the same ones. The tasks
that make questions are ``list_programs``, ``tool_calls``, ``follows_format`` and ``reasoning_gym``; each says
what a level is. With ``{ use = "rollout", task = … }`` a model learns from its own attempts at the same
questions.

Not for teaching a large model anything: it is a small world in which every answer can be checked.

Errors: a task that makes no questions. Fewer questions of a level than ``most`` are no error.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from trainwright.core.errors import UserError
from trainwright.core.method import Curate
from trainwright.core.settings import Count

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context
    from trainwright.corpus.sources import Row
    from trainwright.evaluate._solving import Asking, Question

TRIES = 4
"""Draws for each question that is wanted, before a level counts as exhausted."""


class TaskQuestions(Curate):
    """Chats of one question and its answer, as a task makes them."""

    task: dict[str, Any]
    """The task, such as { use = "list_programs" }."""
    levels: tuple[Count, ...] = (3, 4)
    """Levels of difficulty, as the task counts them."""
    most: Count = 1000
    """Questions of a level at most."""
    domain: str = ""
    """Domain of the conversations; by default the name of the task."""
    example: ClassVar[dict[str, Any]] = {"task": {"use": "list_programs"}, "levels": [3], "most": 10}

    def __post_init__(self) -> None:
        if not self.levels or len(set(self.levels)) < len(self.levels):
            raise ValueError("levels names one level at least, and none twice")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.core import registry
        from trainwright.corpus.sources import table, union
        from trainwright.evaluate._solving import Asking

        task = registry.create(self.task, ctx.root, "task_questions: task")
        if not isinstance(task, Asking):
            raise UserError(
                f"task_questions: {task.name} makes no questions: take one that does, such as list_programs."
            )
        rows = list(self._rows(task, ctx.seed))
        return union(documents, table(self.name, [partial(iter, rows)]))

    def _rows(self, task: Asking, seed: int) -> Iterator[Row]:
        from trainwright.corpus.sources import document

        domain = self.domain or task.name
        for level in self.levels:
            draw = random.Random(f"{seed}/{task.name}/{level}")
            found: dict[str, Question] = {}
            for _ in range(TRIES * self.most):
                if len(found) == self.most:
                    break
                one = task.question(draw, level)
                found.setdefault(one.prompt, one)
            for number, one in enumerate(found.values()):
                messages = [
                    {"role": "user", "content": one.prompt},
                    {"role": "assistant", "content": one.answer},
                ]
                yield document(
                    id=f"{domain}/{level}/{number}",
                    domain=domain,
                    source="made here",
                    metadata={"level": level} | dict(one.told),
                    messages=messages,
                )
