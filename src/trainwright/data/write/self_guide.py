"""A model makes its own training data for one task: first inputs, then outputs, both filtered by rules.

"SELF-GUIDE: Better Task-Specific Instruction Following via Self-Synthetic Finetuning" (arXiv 2407.12874).
Given an instruction and about three demonstrations, the model to be tuned

1. writes new inputs, ``per_round`` in each of ``rounds``: the prompt shows the demonstrations' inputs as good
   examples and 1 to 10 random inputs of earlier rounds as poor ones; if the task has ``labels``, each input
   is conditioned on a random one of them;
2. extracts the bare input from what it wrote, at temperature 0; duplicates are dropped;
3. answers each input, with the instruction and the demonstrations in the prompt. In a task with labels, the
   output is the first label in the answer, as words of its own (in "not entailment" it is "not entailment" if
   that is a label, and "know" has no "no"). Answers without a label are dropped, and so are random
   ones of the more frequent labels, until all labels are equally frequent.

After each step the rules drop what is empty, what contains a noisy fragment (plain substrings: ``input``,
``output``, a blank line, escaped underscores, an assistant's greetings), and what is unlikely short or
long: with m and s the mean and the population's standard deviation of the demonstrations' lengths in
characters (for an output, of their outputs),

    int(m - 2 s) <= length <= int(m + 2 s)

Each pair becomes a conversation. The user says the whole prompt, with instruction and demonstrations, and
the assistant the output, so ``supervised`` learns the outputs alone. Prompt the tuned model in the same
way; the baseline to beat is that prompt without tuning. ``from.model`` must be the model that is tuned
afterwards: a stronger writer is another method.

Not for tasks about inputs and outputs themselves (those words are banned unless ``banned`` says otherwise),
nor for a model that cannot do the task from its prompt: no rule checks that an output is right.

Errors: nobody to write, no pair left, a writer that fails (its answers so far are kept).
"""
from __future__ import annotations

import random
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, ClassVar

from trainwright.core.errors import UserError
from trainwright.core.method import Curate
from trainwright.core.stage import Role
from trainwright.lm.writing.documents import kept_table
from trainwright.lm.writing.prompts import filled
from trainwright.lm.writing.writer import Request, Writer, Writing

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context
    from trainwright.corpus.sources import Row

BANNED = ("input", "output", "\n\n", "\\_\\_", "Of course!", "Sure!", "Sure, ", "Certainly", "Absolutely!",
          "Great question",
          "Good question", "happy to help", "here to help", "Let me see", "Let me explain", "Let me help",
          "Thanks for asking", "glad you asked", "I understand your question", "As an AI")
"""Fragments that no input and no output may have."""
PROMPTS = {
    "ask": "A task: {instruction}\n\nGood examples of what it is given:\n\n{good}\n\nWeaker "
           "ones:\n\n{poor}\n\nWrite one new example of what the task is given, unlike all of these{label}. "
           "Write it alone, without its solution.",
    "extract": "Somebody was asked for one more example like these:\n\n{good}\n\nThe reply was:\n\n{text}\n\n"
               "Copy the bare example out of the reply, word for word, and nothing else.",
    "answer": "{instruction}\n\n{solved}\n\nQuestion: {question}\nAnswer:"}
LABEL = ", to which the right answer is: {label}"
Bounds = tuple[int, int] | None


class SelfGuide(Curate):
    """Adds conversations for one task that the model wrote itself."""

    instruction: str
    """What the task is."""
    demonstrations: list[dict[str, str]]
    """Solved examples of it, each ``{ input = "…", output = "…" }``."""
    labels: tuple[str, ...] = ()
    """The possible outputs, for a task of classification."""
    rounds: int = 40
    """How often to ask for new inputs."""
    per_round: int = 10
    """Inputs to ask for in a round."""
    length_filter: bool = True
    """Whether lengths must be within two standard deviations of the demonstrations'."""
    banned: tuple[str, ...] = BANNED
    """Fragments of text that no input and no output may have."""
    domain: str = "self_guide"
    """Domain of the conversations."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Wordings of your own: ``ask`` (of {instruction}, {good}, {poor}, {label}), ``extract`` ({good},
    {text}) and ``answer`` ({instruction}, {solved}, {question})."""
    writer: Writer = Writer(top_k=40, max_tokens=256)
    """Who writes, and how."""
    roles: ClassVar[dict[str, Role]] = {"model": Role()}
    example: ClassVar[dict[str, Any]] = {
        "instruction": "Add.", "demonstrations": [{"input": "1+1", "output": "2"}], "rounds": 2,
        "per_round": 4,
        "banned": [], "length_filter": False, "writer": {"max_tokens": 4},
        "prompts": {"ask": "{label}new", "extract": "{text}", "answer": "{question}"}}

    def __post_init__(self) -> None:
        check(self.instruction, self.demonstrations, self.labels, self.prompts)
        if self.rounds < 1 or self.per_round < 1:
            raise ValueError(f"rounds and per_round must be positive, not {self.rounds} and {self.per_round}")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.sources import union
        with self.writer.start(self.name, ctx) as writing:
            return union(documents, kept_table(self._rows(writing, ctx), ctx))

    def _rows(self, writing: Writing, ctx: Context) -> Iterator[Row]:
        from trainwright.corpus.sources import document
        inputs = self._inputs(writing, ctx.seed)
        pairs = self._pairs(inputs, writing, ctx.seed)
        ctx.note("self_guide/inputs", float(len(inputs)))
        ctx.note("self_guide/pairs", float(len(pairs)))
        if not pairs:
            raise UserError(f"self_guide: of {self.rounds * self.per_round:,} inputs that were asked for "
                            f"{len(inputs):,} passed the rules, and of their outputs none: is the model able "
                            "to do the task from its prompt?")
        for number, (question, said) in enumerate(pairs):
            asked = self._prompt(question)
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
            yield document(id=f"{self.domain}/{number}", domain=self.domain, source=self.name,
                           metadata={"input": question, "output": said}, messages=messages)

    def _prompt(self, question: str) -> str:
        return answer((PROMPTS | self.prompts)["answer"], self.instruction, self.demonstrations, question)

    def _inputs(self, writing: Writing, seed: int) -> list[str]:
        """The inputs of all rounds, each once; a round sees those of earlier ones."""
        words, within = PROMPTS | self.prompts, self._bounds("input")
        shown = [d["input"] for d in self.demonstrations]
        found: dict[str, None] = {}
        for turn in range(self.rounds):
            asked = []
            for i in range(self.per_round):
                draw, earlier = random.Random(f"self_guide/{seed}/{turn}/{i}"), list(found)
                poor = draw.sample(earlier, draw.randint(1, min(10, len(earlier)))) if earlier else []
                label = draw.choice(self.labels) if self.labels else ""
                good = draw.sample(shown, len(shown))
                asked.append(Request(f"ask/{turn}/{i}",
                                     ask(words["ask"], self.instruction, good, poor, label)))
            raw = [text for _, text in writing.write(asked) if passes(text, self.banned, within)]
            bare = [Request(f"extract/{turn}/{i}", extract(words["extract"], shown, t), 0.0)
                    for i, t in enumerate(raw)]
            found |= {text: None for _, text in writing.write(bare) if passes(text, self.banned, within)}
        return list(found)

    def _pairs(self, inputs: Sequence[str], writing: Writing, seed: int) -> list[tuple[str, str]]:
        """The inputs with the outputs that pass the rules."""
        within = None if self.labels else self._bounds("output")
        answers = writing.write(Request(f"answer/{i}", self._prompt(one)) for i, one in enumerate(inputs))
        pairs = [(question, text) for question, (_, text) in zip(inputs, answers, strict=True)
                 if passes(text, self.banned, within)]
        if not self.labels:
            return pairs
        found = [(question, label) for question, text in pairs if (label := label_of(text, self.labels))]
        return balanced(found, self.labels, random.Random(f"self_guide/{seed}/labels"))

    def _bounds(self, side: str) -> Bounds:
        return bounds([d[side] for d in self.demonstrations]) if self.length_filter else None


def ask(template: str, instruction: str, good: Sequence[str], poor: Sequence[str], label: str) -> str:
    """The prompt for a new input."""
    return filled(template, instruction=instruction, good=_list(good), poor=_list(poor),
                  label=filled(LABEL, label=label) if label else "")


def extract(template: str, good: Sequence[str], text: str) -> str:
    """The prompt that takes the bare input out of a reply."""
    return filled(template, good=_list(good), text=text)


def answer(template: str, instruction: str, demonstrations: Iterable[Mapping[str, str]],
           question: str) -> str:
    """The prompt for an output, with which the tuned model is asked too."""
    solved = "\n\n".join(f"Question: {d['input']}\nAnswer: {d['output']}" for d in demonstrations)
    return filled(template, instruction=instruction, solved=solved, question=question)


def _list(texts: Sequence[str]) -> str:
    return "\n".join(f"- {t}" for t in texts) or "- (none yet)"


def bounds(texts: Sequence[str]) -> tuple[int, int]:
    """Mean and two standard deviations (of the population) to either side of the lengths in characters,
    cut to whole numbers."""
    lengths = [len(t) for t in texts]
    mean, spread = statistics.fmean(lengths), statistics.pstdev(lengths)
    return int(mean - 2 * spread), int(mean + 2 * spread)


def passes(text: str, banned: Sequence[str], within: Bounds) -> bool:
    """Whether the rules let a text through."""
    fits = within is None or within[0] <= len(text) <= within[1]
    return bool(text.strip()) and fits and not any(fragment in text for fragment in banned)


def label_of(text: str, labels: Sequence[str]) -> str:
    """The label that comes first in an output, as words of its own, or nothing; of two that begin at one
    place the longer."""
    found = [(m.start(), -len(label), label) for label in labels if (m := re.search(_words(label), text))]
    return min(found)[2] if found else ""


def _words(label: str) -> str:
    """A pattern of a label that is no part of a longer word; scripts without cases write no spaces."""
    before, after = (r"(?<![\w-])", r"(?![\w-])")
    first, last = (one.isdigit() or one.lower() != one.upper() for one in (label[:1], label[-1:]))
    return (before if first else "") + re.escape(label) + (after if last else "")


def balanced(pairs: Sequence[tuple[str, str]], labels: Sequence[str],
             draw: random.Random) -> list[tuple[str, str]]:
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
            raise ValueError(f"demonstration {number} must have an input and an output, both with text, and "
                             f"nothing else; it has {', '.join(sorted(one)) or 'nothing'}")
        if labels and one["output"] not in labels:
            raise ValueError(f"the output {one['output']!r} of demonstration {number} is none of the labels "
                             f"{', '.join(labels)}")
    for name in prompts:
        if name not in PROMPTS:
            raise ValueError(f"there is no prompt {name!r}; there are {', '.join(PROMPTS)}")
