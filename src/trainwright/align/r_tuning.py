"""R-Tuning: answers that a model does not know are marked as such before it is fine-tuned on them.

"R-Tuning: Teaching Large Language Models to Refuse Unknown Questions" (arXiv 2311.09677). The model of before
(``from.model``) answers each question for training; what it should have answered stands in the document. Of a
conversation of one question and its answer a, the answer that is learned becomes

    unsure      a, ``ask``, and "I am sure." or "I am unsure."     sure where a stands in what the model said
    unknown     a where the model knows it, else a refusal, and nothing is asked
    uncertain   as unsure; sure is the half with the least entropy of ``samples`` drawn answers: needs no a

The model reads ``template`` with the question and says the likeliest tokens, ``new_tokens`` at most, up to
the first full stop; for ``uncertain`` it draws at ``temperature``. Which questions are known is the affair of
the model of before, and of training questions alone: held-out documents go along untouched. An answer that
the model did not know is learned all the same, with what it is worth beside it. The column ``certainty`` is 1
(sure) or 0. Other documents stay what they are. ``refusals`` measures what has become of it.

Compare with plain fine-tuning on the same questions. Not where the answers are long: whether one is known is
told by finding a in what was said, letter by letter.

Errors: no ``from.model``, or one without a tokenizer; no question with an answer; a template without the
question.
"""
from __future__ import annotations

import json
import math
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainwright.align._certainty import STOP, SURE, UNSURE, answer_of, asked, known, turns_of
from trainwright.core.errors import UserError
from trainwright.core.method import Curate
from trainwright.core.settings import Count, Positive
from trainwright.core.stage import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daft import DataFrame

    from trainwright.core.context import Context

REFUSALS = ("I do not know.", "That is beyond what I know.", "I have no answer to this.",
            "I am not able to answer that.")
WHERE = "{question}"


class RTuning(Curate):
    """Marks answers as sure or unsure, by what the model of before knows."""

    how: Literal["unsure", "unknown", "uncertain"] = "unsure"
    """What is made of an answer that the model does not know, and how that is found out."""
    ask: str = "Are you sure of this answer?"
    """What stands between an answer and its certainty."""
    template: str = "Question: {question} Answer:"
    """What the model of before reads."""
    new_tokens: Count = 15
    """Tokens of its answer at most."""
    samples: Count = 5
    """Answers to draw (uncertain)."""
    temperature: Positive = 0.7
    """At which they are drawn."""
    batch_size: Count = 32
    """Questions that are answered at once."""
    roles: ClassVar[dict[str, Role]] = {"model": Role(needed=True)}
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "questions are answered in batches; what a model said is not said again "
        "for each look"}
    example: ClassVar[dict[str, Any]] = {"new_tokens": 3}

    def __post_init__(self) -> None:
        if WHERE not in self.template or not self.ask.strip():
            raise ValueError(f"template must have {WHERE} in it, and ask must say something")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        import pyarrow as pa

        from trainwright.corpus.editing import said
        from trainwright.corpus.selecting import attach, columns, settled
        rows = settled(documents, ctx)
        table = columns(rows.where(rows["messages"].not_null()), "id", "messages").sort_by("id")
        found = {row["id"]: turns for row in table.to_pylist() if (turns := turns_of(row)) is not None}
        if not found:
            raise UserError("r_tuning: no document that came in is a question with an answer.")
        sure = self._sure(found, ctx)
        made = {name: [{"role": "user", "content": question},
                       {"role": "assistant", "content": self._learned(name, answer, sure[name], ctx)}]
                for name, (question, answer) in found.items()}
        told = {"id": list(made), "new_text": [said(turns) for turns in made.values()],
                "new_messages": [json.dumps(turns, ensure_ascii=False) for turns in made.values()]}
        texts = {name: pa.array(values, pa.large_string()) for name, values in told.items()}
        new = attach(rows, pa.table(texts | {"certainty": [float(sure[name]) for name in made]}))
        kept = new.with_columns({n: new[f"new_{n}"].fill_null(new[n]) for n in ("text", "messages")})
        return kept.exclude("new_text", "new_messages")

    def _learned(self, name: str, answer: str, sure: bool, ctx: Context) -> str:
        if self.how == "unknown":
            draw = int(ctx.rng(f"r_tuning/refusal/{name}", at=0).initial_seed())
            return answer if sure else REFUSALS[draw % len(REFUSALS)]
        return asked(answer, self.ask) + (SURE if sure else UNSURE)

    def _sure(self, found: Mapping[str, tuple[str, str]], ctx: Context) -> dict[str, bool]:
        """Which of the questions the model knows the answer to."""
        many = self.samples if self.how == "uncertain" else 1
        answers = self._answers([question for question, _ in found.values()], many, ctx)
        if self.how != "uncertain":
            return {name: known(gold, said[0])
                    for (name, (_, gold)), said in zip(found.items(), answers, strict=True)}
        spread = {name: entropy(said) for name, said in zip(found, answers, strict=True)}
        order = sorted(spread, key=lambda name: (spread[name], name))
        lower = set(order[:len(order) // 2])
        return {name: name in lower for name in found}

    def _answers(self, questions: list[str], many: int, ctx: Context) -> list[list[str]]:
        from trainwright import families
        from trainwright.lm.generation import Prompt, encoded, room, written
        folder = ctx.path("model")
        tokenizer = families.load_tokenizer(folder, self.name)
        if tokenizer is None:
            raise UserError(f"{self.name}: the model in {folder} has no tokenizer, so that it cannot answer.")
        model: Any = families.load(folder, self.name).to(ctx.device).eval()
        warmth, prompts = (self.temperature if many > 1 else 0.0), []
        for question in questions:
            ids = encoded(model, tokenizer, self.template.replace(WHERE, question), False, "")
            left = room(model, len(ids), self.new_tokens, self.name)
            seeds = [ctx.rng(f"r_tuning/{i}/{question}", at=0).initial_seed() for i in range(many)]
            prompts += [Prompt(ids, left, seed, warmth) for seed in seeds]
        said = [tokenizer.decode(ids, skip_special_tokens=True)
                for ids in written(model, tokenizer, prompts, ctx, batch_size=self.batch_size, top_k=0)]
        cut = [one.partition(STOP)[0] if many == 1 else answer_of(one, self.ask) for one in said]
        return [cut[i:i + many] for i in range(0, len(cut), many)]


def entropy(answers: list[str]) -> float:
    """Of the counts of equal answers, in nats."""
    shares = [n / len(answers) for n in Counter(answers).values()]
    return -sum(p * math.log(p) for p in shares)
