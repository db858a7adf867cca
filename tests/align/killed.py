"""Reinforcement that is killed where it samples, where it grades and between its epochs, in forked processes
on one rank and on two: ``main`` tells how each process ended.

A base, preference pairs and a reward model are made once, in the store ``start``; every other store begins as
a copy of it. ``whole1`` and ``whole2`` are left alone, on so many ranks; of ``killed1`` and ``killed2`` the
last rank dies at each of ``PLACES`` in turn, and the same command goes on.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import forks
from trainwright.align import rollout
from trainwright.align.rollout import Rollout
from trainwright.lm.drawing import Draw

PLACES = ("sampling", "grading", "epochs")
SECOND, BETWEEN = 4, 6
"""The steps in which the second rollout is made, and in which its second epoch begins."""
DIVIDE = ("token", "answer", "group", "length")
GRADER = '''"""Grades the characters of an answer; has no grade for some."""
from trainwright.core.method import Task


class Picky(Task):
    def grade(self, prompt, answer):
        number = sum(map(ord, answer))
        if number % 7 == 2:
            raise RuntimeError("no idea")
        return number % 5 / 4
'''
BEGINNING = """title = "Killed"
seed = 3

[[stage]]
name = "corpus"
kind = "corpus"
vocab_size = 290
chat_template = "chatml"
methods = [{ use = "arithmetic_questions", levels = [1], operations = "+" }, { use = "worse_answers", how = ["repeated"] }]

[[stage]]
name = "base"
kind = "train"
from = { data = "corpus" }
model = { type = "llama", hidden_size = 16, intermediate_size = 32, num_hidden_layers = 1, num_attention_heads = 2, \
          num_key_value_heads = 1, max_position_embeddings = 64 }
steps = 12
batch_size = 8
precision = "fp32"
compile = false
methods = [{ use = "examples", length = 48 }, { use = "supervised" }, { use = "adamw", lr = 1e-2 }]

[[stage]]
name = "judge"
kind = "train"
from = { model = "base", data = "corpus" }
steps = 2
batch_size = 8
precision = "fp32"
compile = false
methods = [{ use = "examples", fields = ["chosen", "rejected"], length = 48 }, { use = "reward_head" },
           { use = "bradley_terry" }, { use = "adamw", lr = 1e-2 }]
"""  # noqa: E501
STAGE = """
[[stage]]
name = "NAME"
kind = "train"
from = { model = "base", data = "corpus"MORE }
steps = STEPS
batch_size = BATCH
accumulate = 2
precision = "fp32"
compile = false
save_every = 3
methods = [
  { use = "rollout", TASKgroup = 4, prompts = 4, epochs = 2, new_tokens = 5, length = 48, sample_size = 6 },
  { use = "grpo", divide = "DIVIDE", kl = 0.05 },
  OPTIMIZER,
]
"""
ADAMW = '{ use = "adamw", lr = 3e-3, eps = 1e-6 }'
SGD = '{ use = "torch_optim", optimizer = "SGD", lr = 1.0 }'


def stage(name: str, steps: int, divide: str, optimizer: str, *, judged: bool = False,
          batch: int = 8) -> str:
    """A stage of reinforcement."""
    told = {"NAME": name, "STEPS": str(steps), "DIVIDE": divide, "OPTIMIZER": optimizer,
            "BATCH": str(batch),
            "MORE": ', reward = "judge"' if judged else "",
            "TASK": "" if judged else 'task = { use = "./picky.py" }, '}
    text = STAGE
    for word, value in told.items():
        text = text.replace(word, value)
    return text


def recipe() -> str:
    """The beginning, a stage to be killed, one that the reward model grades, and a step by each division."""
    return "".join([BEGINNING, stage("learned", 10, "token", ADAMW),
                    stage("judged", 2, "answer", ADAMW, judged=True),
                    *(stage(f"by_{divide}", 1, divide, SGD, batch=16) for divide in DIVIDE)])


def die(*given: Any) -> Any:
    """As a machine that loses its power."""
    os.kill(os.getpid(), signal.SIGKILL)


def third(before: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose third call is the end."""
    calls = []

    def counted(*given: Any) -> Any:
        calls.append(1)
        return die() if len(calls) == 3 else before(*given)
    return counted


def deadly(place: str) -> None:
    """Make this process die at a place of the stage ``learned``."""
    answers, graded, following = rollout.Rollout._answers, Rollout._graded, Rollout.next

    def sampling(self: Rollout, tries: Any, ctx: Any) -> Any:
        if ctx.step == SECOND:
            Draw.__call__ = third(Draw.__call__)  # type: ignore[method-assign]
        return answers(self, tries, ctx)

    def grading(self: Rollout, questions: Any, said: Any, ctx: Any) -> Any:
        if ctx.step == SECOND:
            rollout._grade = third(rollout._grade)
        return graded(self, questions, said, ctx)

    def epochs(self: Rollout, pull: Any, state: Any, ctx: Any) -> Any:
        return die() if ctx.step == BETWEEN else following(self, pull, state, ctx)
    name, made = {"sampling": ("_answers", sampling), "grading": ("_graded", grading),
                  "epochs": ("next", epochs)}[place]
    setattr(Rollout, name, made)


def main(folder: Path) -> dict[str, list[int]]:
    (folder / "picky.py").write_text(GRADER)
    (folder / "life.toml").write_text(BEGINNING)
    codes = {"start": [forks.on_ranks(folder, "start", 1, [])[0]]}
    assert codes["start"] == [0], (folder / "start.log").read_text()
    for ranks in (1, 2):
        for name in ("whole", "killed"):
            store = f"{name}{ranks}"
            shutil.copytree(folder / "start", folder / store)
            codes[store] = []
            learned = BEGINNING + stage("learned", 10, "token", ADAMW)
            (folder / "life.toml").write_text(recipe() if name == "whole" else learned)
            for place in (*(PLACES if name == "killed" else ()), ""):
                def arm(rank: int, place: str = place, last: int = ranks - 1) -> None:
                    if place and rank == last:
                        deadly(place)
                codes[store].append(forks.on_ranks(folder, store, ranks, [], arm)[0])
    return codes
