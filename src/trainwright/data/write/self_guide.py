"""A model makes its own training data for one task: inputs first, then outputs for them, both filtered by rules.

"SELF-GUIDE: Better Task-Specific Instruction Following via Self-Synthetic Finetuning" (arXiv 2407.12874). Given are an
instruction and about three demonstrations. The model that is to be tuned

1. writes new inputs, ``rounds`` of ``per_round``: the prompt shows the demonstrations' inputs as good examples and 1 to 10 random
   inputs of earlier rounds as poor ones; where the task has ``labels``, a random one of them conditions each input;
2. takes the bare input out of what it wrote, at temperature 0; duplicates are dropped;
3. answers each input, with the instruction and the demonstrations in the prompt. Of a task with labels the first label that an
   output contains is the output; one without is dropped, and so are random ones of the labels that came more often than others.

After each of these the rules drop what is empty, what has a noisy fragment (plain substrings: ``input``, ``output``, a blank
line, escaped underscores, greetings of an assistant), and what is shorter or longer than the demonstrations make likely: with
m and s the mean and standard deviation (of the population) of their lengths in characters, of outputs for an output,

    int(m - 2 s) <= length <= int(m + 2 s)

Each pair is a conversation: the whole prompt, with instruction and demonstrations, is what the user says, the output what
the assistant says, so that ``supervised`` learns the outputs alone; the tuned model is prompted in the same way. The baseline
to beat is that prompt without tuning. ``from.model`` must be the model that is tuned afterwards: a stronger writer is another
method.

Not for tasks about inputs and outputs themselves (the words are banned: say ``banned``), nor for a model that cannot do
the task in its context: no rule checks that an output is right. Errors: nobody to write, no pair left, a writer that fails
(what was written is kept).
"""
from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, ClassVar

from trainwright.core.errors import UserError
from trainwright.core.method import Curate
from trainwright.data.write import _demonstrations as rules
from trainwright.data.write._demonstrations import BANNED, PROMPTS, Bounds, passes
from trainwright.lm.writing.writer import Request, Writer, check_writing, kept_table

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context
    from trainwright.corpus.sources import Row


class SelfGuide(Curate):
    """Adds conversations for one task that the model wrote itself."""

    instruction: str
    """What the task is."""
    demonstrations: list[dict[str, str]]
    """Solved examples of it, each ``{ input = "…", output = "…" }``."""
    labels: tuple[str, ...] = ()
    """The outputs that there are, for a task of classification."""
    rounds: int = 40
    """How often new inputs are asked for."""
    per_round: int = 10
    """Inputs that a round asks for."""
    length_filter: bool = True
    """Whether lengths must be within two standard deviations of the demonstrations'."""
    banned: tuple[str, ...] = BANNED
    """Fragments of text that no input and no output may have."""
    domain: str = "self_guide"
    """Domain of the conversations."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Own wordings: ``ask`` (of {instruction}, {good}, {poor}, {label}), ``extract`` ({good}, {text}) and ``answer``
    ({instruction}, {solved}, {question})."""
    endpoint: str = ""
    """Address of a server that speaks OpenAI's protocol, such as http://127.0.0.1:8000/v1; default: ``from.model`` writes."""
    model_name: str = ""
    """What the endpoint calls the model."""
    key_variable: str = ""
    """Environment variable that holds the endpoint's key; default: none is sent."""
    at_once: int = 8
    """Requests under way at once; with a local model, rows of a batch."""
    requests_per_minute: int = 0
    """How many requests an endpoint is sent a minute at most; 0: no limit."""
    temperature: float = 0.7
    """0 takes the likeliest token each time."""
    top_k: int = 40
    """Tokens that are drawn from, the likeliest; 0: all (for endpoints that do not know the word)."""
    max_tokens: int = 256
    """Tokens of an answer at most."""
    example: ClassVar[dict[str, Any]] = {
        "instruction": "Add.", "demonstrations": [{"input": "1+1", "output": "2"}], "rounds": 2, "per_round": 4, "banned": [],
        "length_filter": False, "max_tokens": 4, "prompts": {"ask": "{label}new", "extract": "{text}", "answer": "{question}"}}

    def __post_init__(self) -> None:
        check_writing(self)
        rules.check(self.instruction, self.demonstrations, self.labels, self.prompts)
        if self.rounds < 1 or self.per_round < 1:
            raise ValueError(f"rounds and per_round must be positive, not {self.rounds} and {self.per_round}")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.selecting import settled
        from trainwright.corpus.sources import union
        rows = settled(documents, ctx)
        with Writer(self, ctx) as writer:
            return union(rows, kept_table(self._rows(writer, ctx), ctx))

    def _rows(self, writer: Writer, ctx: Context) -> Iterator[Row]:
        from trainwright.corpus.sources import document
        inputs = self._inputs(writer, ctx.seed)
        pairs = self._pairs(inputs, writer, ctx.seed)
        ctx.note("self_guide/inputs", float(len(inputs)))
        ctx.note("self_guide/pairs", float(len(pairs)))
        if not pairs:
            raise UserError(f"self_guide: of {self.rounds * self.per_round:,} inputs that were asked for {len(inputs):,} passed "
                            "the rules, and of their outputs none: is the model able to do the task from its prompt?")
        for number, (question, said) in enumerate(pairs):
            asked = self._prompt(question)
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
            yield document(id=f"{self.domain}/{number}", text=f"{asked}\n\n{said}", domain=self.domain, source=self.name,
                           metadata={"input": question, "output": said}, messages=messages)

    def _prompt(self, question: str) -> str:
        return rules.answer((PROMPTS | self.prompts)["answer"], self.instruction, self.demonstrations, question)

    def _inputs(self, writer: Writer, seed: int) -> list[str]:
        """What all rounds brought, each once; a round sees what came before it."""
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
                asked.append(Request(f"ask/{turn}/{i}", rules.ask(words["ask"], self.instruction, good, poor, label)))
            raw = [text for _, text in writer.write(asked) if passes(text, self.banned, within)]
            bare = [Request(f"extract/{turn}/{i}", rules.extract(words["extract"], shown, t), 0.0) for i, t in enumerate(raw)]
            found |= {text: None for _, text in writer.write(bare) if passes(text, self.banned, within)}
        return list(found)

    def _pairs(self, inputs: Sequence[str], writer: Writer, seed: int) -> list[tuple[str, str]]:
        """The inputs with the outputs that passed the rules."""
        within = None if self.labels else self._bounds("output")
        told = writer.write(Request(f"answer/{i}", self._prompt(question)) for i, question in enumerate(inputs))
        pairs = [(question, text) for question, (_, text) in zip(inputs, told, strict=True) if passes(text, self.banned, within)]
        if not self.labels:
            return pairs
        found = [(question, label) for question, text in pairs if (label := rules.label_of(text, self.labels))]
        return rules.balanced(found, self.labels, random.Random(f"self_guide/{seed}/labels"))

    def _bounds(self, side: str) -> Bounds:
        return rules.bounds([d[side] for d in self.demonstrations]) if self.length_filter else None
