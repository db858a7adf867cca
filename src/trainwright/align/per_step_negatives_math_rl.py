"""Preference pairs that part at the step where a wrong solution went wrong.

"RL on Incorrect Synthetic Data Scales the Efficiency of LLM Math Reasoning by Eight-Fold" (arXiv 2406.14532).
Of each conversation, ``from.model`` draws ``answers`` solutions to its prompt x, which the ``task`` grades.
The first wrong one, of steps y_1 .. y_n, is taken apart: with Q_i the share of right ones among ``rollouts``
continuations of y_1 .. y_i by the same model (Q_0: among the answers; Q_n = 0, it is wrong),

    A_i = Q_i - Q_(i-1)              the advantage of a step
    c = first i with A_i <= -drop    the step at which it went wrong

    prompt    x
    chosen    y_1 .. y_(c-1) and the first right continuation of them
    rejected  y_1 .. y_n

Both have the right steps in common, which so are not punished: in a difference of log-ratios, such as that
of ``dpo``, what they have in common cancels out, and the loss is that of the steps from c on, given those
before.
Compared is what a step does to the chance of success, not how low that is: a hard prompt is no wrong step.
The reference of ``dpo`` is that model. Per-step pairs drawn by advantage make DPO advantage-weighted
reinforcement: its optimum is ref exp(A / beta).

Pairs are documents of their own, in the domain ``domain`` and with the ``origin`` from which they were made;
there is none where nothing was right or nothing wrong, or where no step falls by ``drop``. Ends of steps are
``separator``; ungraded answers are no answers. With few rollouts Q is noise (of 4, its standard error is up
to 0.25), and ``drop`` must be above it. It costs ``answers`` solutions a
prompt, and ``rollouts`` for each step of one of them.

With ``whole = false`` a pair ends with the step at which it parts, as in the paper; ``examples`` reads such
pairs with ``ends = false``. Otherwise both go on to their ends. Left out: the loss (``dpo``), and the
fine-tuning on right answers before it.

Not for answers of one step: it is ordinary DPO on right and wrong answers then.

Errors: no ``from.model``, or one that cannot answer a conversation; no task; no conversation that came in;
no pair that was found.
"""
from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from trainwright.align._drawn import Turns, Writer, paired
from trainwright.core import registry
from trainwright.core.errors import UserError
from trainwright.core.method import Curate, Task
from trainwright.core.settings import Between, Count, Positive
from trainwright.core.stage import Role

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context


class PerStepNegativesMathRl(Curate):
    """Pairs of a right and a wrong solution that have the right steps in common."""

    task: dict[str, Any]
    """The task that grades solutions, such as { use = "sums" }."""
    answers: Count = 8
    """Solutions drawn to each prompt."""
    rollouts: Count = 8
    """Continuations drawn behind each step."""
    drop: Annotated[float, Between(0, 1, above=True)] = 0.5
    """Fall of the share of right continuations from which a step is wrong."""
    right: float = 1.0
    """Grade from which a solution is right."""
    separator: str = "\n"
    """What ends a step."""
    domain: str = "pairs"
    """The domain of the pairs."""
    whole: bool = True
    """Whether the answers of a pair go on to their ends, or end with the step at which they part."""
    new_tokens: Count = 128
    """Tokens of a solution, and of a continuation, at most."""
    temperature: Positive = 1.0
    """At which they are drawn."""
    batch_size: Count = 64
    """How many are drawn at once."""
    roles: ClassVar[dict[str, Role]] = {"model": Role(needed=True)}
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "solutions are drawn in batches; what a model said is not said again for "
        "each look"}
    example: ClassVar[dict[str, Any]] = {
        "task": {"use": "matches", "pattern": "[a-m]$", "whole": False}, "separator": " ", "new_tokens": 6,
        "answers": 4, "rollouts": 4, "drop": 0.25}

    def __post_init__(self) -> None:
        if not self.separator:
            raise ValueError("separator must say what ends a step")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.selecting import columns, settled
        rows = settled(documents, ctx)
        table = columns(rows.where(rows["messages"].not_null()), "id", "messages").sort_by("id")
        asked = {row["id"]: turns for row in table.to_pylist() if (turns := _prompt(row["messages"]))}
        if not asked:
            raise UserError("per_step_negatives_math_rl: no document that came in is a conversation.")
        pairs, why = self.pairs(asked, Writer.of(ctx.path("model"), ctx, self.name), ctx)
        if not pairs:
            raise UserError(f"per_step_negatives_math_rl: of {len(asked)} prompts none makes a pair: "
                            f"{next(iter(why.values()))}.")
        return paired(rows, pairs, self.domain, self.name)

    def pairs(self, asked: Mapping[str, Turns], writer: Writer,
              ctx: Context) -> tuple[dict[str, tuple[Turns, str, str]], dict[str, str]]:
        """Prompts with a right and a wrong solution, and why others have none."""
        task = registry.create(self.task, ctx.root, f"{self.name}: task")
        if not isinstance(task, Task):
            raise UserError(f"{self.name}: {task.name} grades no answers: task names a method of kind Task.")
        said = self._drawn(writer, asked, None)
        found, why = {}, {}
        for name, turns in asked.items():
            grades = self._grades(task, turns, said[name])
            wrong = [i for i, g in enumerate(grades) if g < self.right]
            if not wrong or len(wrong) == sum(not math.isnan(g) for g in grades):
                why[name] = f"none of its solutions is {'right' if wrong else 'wrong'}"
                continue
            found[name] = said[name][wrong[0]], self._right(said[name], grades)
        begun = {f"{name}/{i}": before for name, (wrong_one, _) in found.items()
                 for i, before in enumerate(beginnings(wrong_one, self.separator))}
        owner = {key: key.rpartition("/")[0] for key in begun}
        later = self._drawn(writer, {key: asked[owner[key]] for key in begun if begun[key]}, begun)
        pairs: dict[str, tuple[Turns, str, str]] = {}
        for name, (bad, good) in found.items():
            starts = beginnings(bad, self.separator)
            tries = [said[name], *([start + more for more in later[f"{name}/{i}"]]
                                   for i, start in enumerate(starts) if start)]
            graded = [self._grades(task, asked[name], one) for one in tries]
            shares = [_share(one, self.right) for one in graded]
            at = fall([*shares, 0.0], self.drop)
            if at is None:
                why[name] = "no step of its wrong solution is where that went wrong"
                continue
            right = good if at == 0 else self._right(tries[at], graded[at])
            ends = (right[0], bad) if self.whole else (self._begun(one, at) for one in (right[0], bad))
            pairs[name] = (list(asked[name]), *ends)
        return pairs, why

    def _drawn(self, writer: Writer, asked: Mapping[str, Turns],
               begun: Mapping[str, str] | None) -> dict[str, list[str]]:
        many = self.rollouts if begun else self.answers
        return writer.answers(asked, many, self.new_tokens, self.temperature, self.batch_size, begun)

    def _grades(self, task: Task, turns: Turns, said: Sequence[str]) -> list[float]:
        question = next((str(m.get("content") or "") for m in reversed(turns) if m["role"] == "user"), "")
        return [float(task.grade(question, one)) for one in said]

    def _begun(self, solution: str, at: int) -> str:
        """A solution up to the end of a step, counted from 0."""
        return (*beginnings(solution, self.separator), solution)[at + 1]

    def _right(self, said: Sequence[str], grades: Sequence[float]) -> list[str]:
        return [one for one, grade in zip(said, grades, strict=True) if grade >= self.right]


def beginnings(solution: str, separator: str) -> list[str]:
    """What stands before each step of a solution; the first begins with nothing."""
    steps = solution.removesuffix(separator).split(separator)
    return ["".join(f"{step}{separator}" for step in steps[:i]) for i in range(len(steps))]


def fall(shares: Sequence[float], drop: float) -> int | None:
    """The first step, counted from 0, behind which the share of right ones is lower by ``drop`` than before
    it; None where there is none."""
    return next((i for i in range(len(shares) - 1) if shares[i + 1] - shares[i] <= -drop), None)


def _share(grades: Sequence[float], right: float) -> float:
    """Of what is graded the share that is right; NaN where nothing is."""
    given = [g >= right for g in grades if not math.isnan(g)]
    return sum(given) / len(given) if given else math.nan


def _prompt(messages: str) -> Turns:
    """A conversation up to its last answer."""
    turns: Turns = json.loads(messages)
    return turns[:-1] if turns and turns[-1]["role"] == "assistant" else turns
