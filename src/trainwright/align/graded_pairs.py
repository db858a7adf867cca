"""Makes preference pairs of answers that the model gives itself: a right one and a wrong one, as a task
grades.

To each prompt x of the table the model ``from.model`` draws ``samples`` answers at ``temperature``, and
``task`` grades them. Of a prompt whose grades differ by ``gap`` or more,

    chosen     the best of them, rejected the worst; of equals the first that was drawn

So a pair differs in what the model itself does, now right, now wrong, as in the pairs of "Tulu 3: Pushing
Frontiers in Open Language Model Post-Training" (arXiv 2411.15124) that are on policy; ``worse_answers`` makes
pairs of answers that are there. Prompts of which all answers are right, or all wrong, teach nothing: they
have no pair, and their share is logged as ``graded_pairs/alike``; ``graded_pairs/right`` is the share of all
answers that are right (grade 1). With ``gold``, a prompt whose answers are all wrong has the document's own
answer as chosen. Pairs are documents of their own, in the domain ``domain`` and with the ``origin`` from
which they were made; all others stay what they are.

Not where a program cannot grade: with a reward model, ``from.reward`` of ``rollout``.

Errors: no ``from.model``, or one without a tokenizer; no prompt that can be graded; no pair.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from trainwright.core.errors import UserError
from trainwright.core.method import Curate
from trainwright.core.settings import Between, Count, Positive
from trainwright.core.stage import Role

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context

Turns = list[dict[str, Any]]


class GradedPairs(Curate):
    """Writes pairs of a model's own answers to conversations."""

    task: dict[str, Any]
    """The task that grades, such as { use = "list_programs" }."""
    samples: Annotated[int, Between(2, 2**31 - 1)] = 4
    """Answers that are drawn to each prompt."""
    temperature: Positive = 1.0
    """At which they are drawn."""
    gap: Annotated[float, Between(0, 1, above=True)] = 0.5
    """By how much the grades of a pair differ at least."""
    gold: bool = False
    """Whether the document's own answer is chosen where all that were drawn are wrong."""
    domain: str = "pairs"
    """Domain of the pairs."""
    new_tokens: Count = 64
    """Tokens of an answer at most."""
    batch_size: Count = 64
    """Answers that are drawn at once."""
    roles: ClassVar[dict[str, Role]] = {"model": Role(needed=True)}
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "prompts are answered in batches; what a model said is not said "
        "again for each look"
    }
    example: ClassVar[dict[str, Any]] = {
        "task": {"use": "matches", "pattern": "[aeiou]", "whole": False},
        "samples": 6,
        "new_tokens": 3,
    }

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.align._drawn import paired
        from trainwright.corpus.selecting import columns, settled

        rows = settled(documents, ctx)
        table = columns(rows.where(rows["messages"].not_null()), "id", "text", "messages", "prompt")
        asked = {
            one["id"]: turns
            for one in table.sort_by("id").to_pylist()
            if (turns := json.loads(one["messages"]))[-1]["role"] == "assistant" and len(turns) > 1
        }
        if not asked:
            raise UserError("graded_pairs: no document that came in is a conversation with an answer.")
        pairs = self._pairs(asked, ctx)
        if not pairs:
            raise UserError(
                f"graded_pairs: to none of {len(asked)} prompts was there a right and a wrong answer: "
                "draw more samples, or take easier or harder prompts."
            )
        made = {name: (asked[name][:-1], *answers) for name, answers in pairs.items()}
        return paired(rows, made, self.domain, self.name)

    def _pairs(self, asked: dict[str, Turns], ctx: Context) -> dict[str, tuple[str, str]]:
        """Of prompts by the ids of their documents: the better and the worse answer."""
        from trainwright.align._drawn import Writer
        from trainwright.core import registry
        from trainwright.core.method import Task

        task = registry.create(self.task, ctx.root, "graded_pairs: task")
        if not isinstance(task, Task):
            raise UserError(f"graded_pairs: {task.name} grades no answers: task names a method of kind Task.")
        writer, grade = Writer.of(ctx.path("model"), ctx, self.name), task.grader(ctx)
        said = writer.answers(
            {name: turns[:-1] for name, turns in asked.items()},
            self.samples,
            self.new_tokens,
            self.temperature,
            self.batch_size,
        )
        found, right, graded = dict[str, tuple[str, str]](), 0, 0
        for name, answers in said.items():
            question = next(
                (str(m["content"]) for m in reversed(asked[name][:-1]) if m["role"] == "user"), ""
            )
            grades = [(g, a) for a in answers if not math.isnan(g := grade(question, a))]
            right, graded = right + sum(g == 1 for g, _ in grades), graded + len(grades)
            if self.gold and grades and max(g for g, _ in grades) < 1:
                grades.append((1.0, str(asked[name][-1]["content"])))
            if grades:
                best, worst = (pick(grades, key=lambda one: one[0]) for pick in (max, min))
                if best[0] - worst[0] >= self.gap:
                    found[name] = best[1], worst[1]
        if not graded:
            raise UserError(
                f"graded_pairs: {task.name} grades none of the answers: are the prompts of this task?"
            )
        ctx.note("graded_pairs/right", right / graded)
        ctx.note("graded_pairs/alike", 1 - len(found) / len(said))
        return found
