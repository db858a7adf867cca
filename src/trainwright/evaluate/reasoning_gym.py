"""Any of the hundred generators of the package ``reasoning_gym`` as a task, graded by its own verifier.

    grade = what the verifier says, from 0 to 1 (right); NaN where the prompt is none of this generator, or
    the
            verifier failed or ran out of time

``task_questions`` makes corpora of a generator's questions: a value "level" in ``options`` stands for the
level, and what the verifier needs of a question lies in the metadata of its document. The verifier runs in a
process of its own that is killed after ``seconds``, since some of them compute with what a model wrote. As an
evaluator it measures the share ``reasoning_gym`` of answers that are right (1), with Wilson's interval of 95
% (``_low``, ``_high``), ``_mean``, the mean grade, and ``_ungraded``; with ``fresh`` it asks questions made
here instead of those of the corpus.

Needs the extra ``gym``. Not to compare with numbers that others measured, but with the same options and seed.

Errors: no such package or generator; options that it does not have; what ``sums`` says of prompts.
"""

from __future__ import annotations

import importlib.util
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Task
from trainwright.core.settings import Count, Seconds
from trainwright.evaluate._solving import Asking, Question, Solved, facts
from trainwright.lm.apart import Apart, Failed

WORKER = Path(__file__).with_name("_gym_worker.py")
LEVEL = "level"
ENTRY = "entry"


class ReasoningGym(Asking, Task):
    """Answers that a generator of questions grades."""

    dataset: str = "chain_sum"
    """The generator, by its name in the package."""
    options: dict[str, Any] = field(default_factory=dict)
    """Its settings; "level" stands for the level of a question."""
    fresh: Count | None = None
    """Level of questions that are made here, as many as ``most``; default: those of the corpus are asked."""
    seconds: Seconds = 5.0
    """Of grading an answer, at most."""
    makes: ClassVar[tuple[str, ...]] = ("reasoning_gym", "reasoning_gym_*")
    needs: ClassVar[tuple[str, ...]] = ("reasoning_gym",)
    example: ClassVar[dict[str, Any]] = {"fresh": 1, "most": 3, "new_tokens": 2}

    def question(self, draw: random.Random, level: int) -> Question:
        gym, seed = self._package(), draw.randrange(2**31)
        try:
            entry = gym.create_dataset(self.dataset, size=1, seed=seed, **self._options(level))[0]
        except (ValueError, TypeError, AssertionError) as error:
            raise UserError(f"reasoning_gym: {self.dataset}: {error}") from None
        kept = json.loads(json.dumps(entry, default=str))
        return Question(entry["question"], str(entry["answer"]), {ENTRY: kept})

    def grade(self, prompt: str, answer: str) -> float:
        """Not known without the document, or the question that was made here: ``grader`` knows them."""
        return math.nan

    def grader(self, ctx: Context) -> Callable[[str, str], float]:
        self._package()
        told = {q.prompt: q.told for q in self._fresh(ctx)} if self.fresh else facts(ctx)
        known = {asked: one[ENTRY] for asked, one in told.items() if ENTRY in one}
        worker = Apart(WORKER, self.seconds)

        def grade(prompt: str, answer: str) -> float:
            if prompt not in known:
                return math.nan
            try:
                return float(
                    worker.ask(
                        {
                            "dataset": self.dataset,
                            "options": self._options(1),
                            "answer": answer,
                            ENTRY: known[prompt],
                        }
                    )
                )
            except (TimeoutError, Failed):
                return math.nan

        return grade

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        if not self.fresh:
            return super().measure(model, ctx)
        asked = tuple(q.prompt for q in self._fresh(ctx))
        return super(ReasoningGym, replace(self, questions=asked)).measure(model, ctx)

    def more(self, found: Sequence[Solved]) -> dict[str, float]:
        given = [one.grade for one in found if not math.isnan(one.grade)]
        return {f"{self.name}_mean": sum(given) / len(given)}

    def _fresh(self, ctx: Context) -> list[Question]:
        draw = random.Random(f"{ctx.seed}/{self.dataset}")
        return [self.question(draw, self.fresh or 1) for _ in range(self.most)]

    def _options(self, level: int) -> dict[str, Any]:
        return {name: level if told == LEVEL else told for name, told in self.options.items()}

    def _package(self) -> Any:
        if importlib.util.find_spec("reasoning_gym") is None:
            raise UserError('reasoning_gym needs reasoning-gym: pip install "trainwright[gym]".')
        import reasoning_gym

        return reasoning_gym
