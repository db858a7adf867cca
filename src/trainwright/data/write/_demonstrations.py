"""A task as its instruction and a few solved examples: prompts made of them, and rules for what a model writes after them."""
from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Mapping, Sequence

from trainwright.lm.writing.writer import filled

BANNED = ("input", "output", "\n\n", "\\_\\_", "Of course!", "Sure!", "Sure, ", "Certainly", "Absolutely!", "Great question",
          "Good question", "happy to help", "here to help", "Let me see", "Let me explain", "Let me help", "Thanks for asking",
          "glad you asked", "I understand your question", "As an AI")
"""Fragments that no input and no output may have."""
PROMPTS = {
    "ask": "A task: {instruction}\n\nGood examples of what it is given:\n\n{good}\n\nWeaker ones:\n\n{poor}\n\nWrite one new "
           "example of what the task is given, unlike all of these{label}. Write it alone, without its solution.",
    "extract": "Somebody was asked for one more example like these:\n\n{good}\n\nThe reply was:\n\n{text}\n\nCopy the bare "
               "example out of the reply, word for word, and nothing else.",
    "answer": "{instruction}\n\n{solved}\n\nQuestion: {question}\nAnswer:"}
LABEL = ", to which the right answer is: {label}"
Bounds = tuple[int, int] | None


def ask(template: str, instruction: str, good: Sequence[str], poor: Sequence[str], label: str) -> str:
    """The prompt for a new input."""
    return filled(template, instruction=instruction, good=_list(good), poor=_list(poor),
                  label=filled(LABEL, label=label) if label else "")


def extract(template: str, good: Sequence[str], text: str) -> str:
    """The prompt that takes the bare input out of a reply."""
    return filled(template, good=_list(good), text=text)


def answer(template: str, instruction: str, demonstrations: Iterable[Mapping[str, str]], question: str) -> str:
    """The prompt for an output, with which the tuned model is asked too."""
    solved = "\n\n".join(f"Question: {d['input']}\nAnswer: {d['output']}" for d in demonstrations)
    return filled(template, instruction=instruction, solved=solved, question=question)


def _list(texts: Sequence[str]) -> str:
    return "\n".join(f"- {t}" for t in texts) or "- (none yet)"


def bounds(texts: Sequence[str]) -> tuple[int, int]:
    """Mean and two standard deviations (of the population) to either side of the lengths in characters, cut to whole numbers."""
    lengths = [len(t) for t in texts]
    mean, spread = statistics.fmean(lengths), statistics.pstdev(lengths)
    return int(mean - 2 * spread), int(mean + 2 * spread)


def passes(text: str, banned: Sequence[str], within: Bounds) -> bool:
    """Whether the rules let a text through."""
    fits = within is None or within[0] <= len(text) <= within[1]
    return bool(text.strip()) and fits and not any(fragment in text for fragment in banned)


def label_of(text: str, labels: Sequence[str]) -> str:
    """The first label that an output contains, or nothing."""
    return next((label for label in labels if label in text), "")


def balanced(pairs: Sequence[tuple[str, str]], labels: Sequence[str], draw: random.Random) -> list[tuple[str, str]]:
    """As many pairs of each label as there are of the rarest that occurs; others go, drawn at random."""
    places = [[i for i, (_, said) in enumerate(pairs) if said == label] for label in labels]
    fewest = min((len(p) for p in places if p), default=0)
    chosen = sorted(i for p in places if p for i in draw.sample(p, fewest))
    return [pairs[i] for i in chosen]


def check(instruction: str, demonstrations: Sequence[Mapping[str, str]], labels: Sequence[str],
          prompts: Mapping[str, str]) -> None:
    """For ``__post_init__``: a task that can be worked on.

    Raises:
        ValueError: what is missing, or does not fit together.
    """
    if not instruction.strip():
        raise ValueError("instruction is empty")
    if not demonstrations:
        raise ValueError("demonstrations has no example; the paper gives about three")
    for number, one in enumerate(demonstrations, 1):
        if set(one) != {"input", "output"} or not all(text.strip() for text in one.values()):
            raise ValueError(f"demonstration {number} must have an input and an output, both with text, and nothing else; "
                             f"it has {', '.join(sorted(one)) or 'nothing'}")
        if labels and one["output"] not in labels:
            raise ValueError(f"the output {one['output']!r} of demonstration {number} is none of the labels {', '.join(labels)}")
    for name in prompts:
        if name not in PROMPTS:
            raise ValueError(f"there is no prompt {name!r}; there are {', '.join(PROMPTS)}")
