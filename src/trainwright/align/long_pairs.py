"""Makes preference pairs of a model's own answers: the one it gives to a short passage, and to the long text.

The data of "LongPO: Long Context Self-Evolution of Large Language Models through Short-to-Long Preference
Optimization" (arXiv 2502.13922). Of each long document a passage of ``passage`` words is drawn, and

    question    what the model asks of it (``ask``), or ``question`` where that is given
    chosen      its own answer to the question, given the passage
    rejected    its own answer to the same question, given the whole document
    prompt      the whole document and the question: what the policy reads for both answers
    short       the passage and the question: what the reference is to read for both

Documents that are too long for the model have no pair. The column ``short`` is read by ``{ use =
"reference_log_probs", prompt = "short" }`` of the next corpus stage, with the model that was not changed yet,
and ``longpo`` learns from the result. Documents of fewer words than ``longest`` have no pair, nor those of
which both answers are the same. What is rejected is what the model itself says with all of the text before
it, never a text made worse on purpose. Pairs are documents of their own, in the domain ``domain``, with the
``origin`` from which they were made.

Not where the model cannot answer from a short passage: it teaches itself. Left out: several questions on one
document, as one conversation, and the extension of positions, which is a surgery of its own.

Errors: no ``from.model``, or one without a chat template; no document that is long; no pair.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, ClassVar

from trainwright.core.errors import UserError
from trainwright.core.method import Curate
from trainwright.core.settings import Count, Rate
from trainwright.core.stage import Role

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.align._drawn import Writer
    from trainwright.core.context import Context

TEXT, QUESTION = "{text}", "{question}"


class LongPairs(Curate):
    """Writes pairs of a model's own answers to long documents, with the column ``short``."""

    passage: Count = 200
    """Words of the short passage."""
    longest: Count = 400
    """Words from which a document is long."""
    question: str = ""
    """What is asked of every document; by default the model writes a question of the passage."""
    ask: str = "{text}\n\nWrite one question that the text above answers."
    """How it is asked for a question; ``{text}`` stands for the passage."""
    template: str = "{text}\n\n{question}"
    """What the model reads: a passage or a document, and the question."""
    domains: tuple[str, ...] = ()
    """Domains of the documents; all of them by default."""
    domain: str = "pairs"
    """Domain of the pairs."""
    new_tokens: Count = 64
    """Tokens of a question and of an answer at most."""
    temperature: Rate = 0.0
    """At which they are drawn; 0 takes the likeliest."""
    batch_size: Count = 16
    """Answers that are written at once."""
    roles: ClassVar[dict[str, Role]] = {"model": Role(needed=True)}
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "documents are read in batches; what a model said is not said "
        "again for each look"
    }
    example: ClassVar[dict[str, Any]] = {
        "passage": 1,
        "longest": 2,
        "template": "{text} {question}",
        "question": "?",
        "new_tokens": 3,
        "domains": ["prose"],
        "temperature": 1.0,
    }

    def __post_init__(self) -> None:
        if self.passage >= self.longest:
            raise ValueError(
                f"passage = {self.passage} words are no short part of a document of longest = {self.longest}"
            )
        if TEXT not in self.ask or TEXT not in self.template or QUESTION not in self.template:
            raise ValueError("ask needs {text}, and template {text} and {question}")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        import json

        import pyarrow as pa

        from trainwright.align._drawn import Writer, paired, paired_id
        from trainwright.corpus.selecting import attach, columns, settled

        rows = settled(documents, ctx)
        table = columns(rows.where(rows["messages"].is_null()), "id", "text", "domain").sort_by("id")
        writer = Writer.of(ctx.path("model"), ctx, self.name)
        long = {one["id"]: one["text"] for one in table.to_pylist() if self._long(one, writer)}
        if not long:
            raise UserError(
                f"long_pairs: no document that came in has {self.longest} words or more and leaves the model "
                "room for an answer."
            )
        short = {name: self.part(text, f"{ctx.seed}/{name}") for name, text in long.items()}
        asked = self._questions(writer, short)
        read = {"short": short, "long": long}
        prompts = {
            which: {name: self._turns(text, asked[name]) for name, text in texts.items()}
            for which, texts in read.items()
        }
        said = {which: self._said(writer, turns, which) for which, turns in prompts.items()}
        pairs = {
            name: (prompts["long"][name], said["short"][name], said["long"][name])
            for name in long
            if said["short"][name].strip() and said["short"][name] != said["long"][name]
        }
        ctx.note("long_pairs/alike", 1 - len(pairs) / len(long))
        if not pairs:
            raise UserError(
                f"long_pairs: of {len(long)} documents the model gives the same answer, or none, to "
                "the short passage and to the whole."
            )
        made = {
            "id": pa.array([paired_id(name, self.domain) for name in pairs], pa.large_string()),
            "short": pa.array([json.dumps(prompts["short"][name]) for name in pairs], pa.large_string()),
        }
        return attach(paired(rows, pairs, self.domain, self.name), pa.table(made))

    def _long(self, row: dict[str, Any], writer: Writer) -> bool:
        """Whether a document is long, and not too long for the model with a question and an answer."""
        asked, text = not self.domains or row["domain"] in self.domains, str(row["text"] or "")
        tokens = self.new_tokens if self.question else 2 * self.new_tokens
        long = asked and len(text.split()) >= self.longest
        return long and writer.fits(self._turns(text, self.question), tokens)

    def part(self, text: str, seed: str) -> str:
        """A passage of a document, which begins at a word of its own."""
        words = text.split()
        start = random.Random(seed).randrange(len(words) - self.passage + 1)
        return " ".join(words[start : start + self.passage])

    def _questions(self, writer: Any, short: dict[str, str]) -> dict[str, str]:
        if self.question:
            return dict.fromkeys(short, self.question)
        return self._said(
            writer,
            {
                name: [{"role": "user", "content": self.ask.replace(TEXT, text)}]
                for name, text in short.items()
            },
            "question",
        )

    def _turns(self, text: str, question: str) -> list[dict[str, Any]]:
        parts = self.template.split(TEXT)
        return [{"role": "user", "content": text.join(part.replace(QUESTION, question) for part in parts)}]

    def _said(self, writer: Any, turns: dict[str, list[dict[str, Any]]], key: str) -> dict[str, str]:
        said = writer.answers(turns, 1, self.new_tokens, self.temperature, self.batch_size, key)
        return {name: one[0].strip() for name, one in said.items()}
