"""Makes preference pairs of conversations: the answer that is there, and one that is made worse.

Of a conversation whose last message is the assistant's answer a, the prompt is what stands before it, a is
chosen, and rejected is, drawn from ``how`` by a hash of the document's id,

    other      the answer of another conversation of the table: well said, but of something else
    shuffled   the words of a in a random order
    cut        the first half of its words, three at least: it stops in the middle
    repeated   a, said again: longer, and no better

Documents that are no conversations, that end with the user, or of which nothing worse can be made (an answer
of one word has no other order) stay what they are. The conversation stays beside its pair, so that one corpus
serves supervised fine-tuning and preferences.

For trying methods of preference on real text, and for teaching a model away from a fault that it has. Not as
a stand-in for the judgement of people: whoever learns these pairs learns to avoid four faults.

Errors: no conversation to make a pair of; ``how`` that names nothing.
"""
from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainwright.core.errors import UserError
from trainwright.core.method import Curate

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context

PAIR = ("prompt", "chosen", "rejected")
How = Literal["other", "shuffled", "cut", "repeated"]


class WorseAnswers(Curate):
    """Adds ``prompt``, ``chosen`` and ``rejected`` to conversations."""

    how: tuple[How, ...] = ("other", "shuffled", "cut")
    """What is done to an answer; of several one is drawn for each document."""
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "the answer to another question is anywhere in the table"}

    def __post_init__(self) -> None:
        if not self.how or len(set(self.how)) < len(self.how):
            raise ValueError("how names one or several of other, shuffled, cut and repeated, none twice")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        import pyarrow as pa

        from trainwright.corpus.selecting import attach, columns, settled
        rows = settled(documents, ctx)
        table = columns(rows.where(rows["messages"].not_null()), "id", "messages").sort_by("id")
        talks = {row["id"]: json.loads(row["messages"]) for row in table.to_pylist()}
        talks = {name: turns for name, turns in talks.items() if len(turns) > 1 and _answered(turns)}
        if not talks:
            raise UserError("worse_answers: no document that came in is a conversation with an answer.")
        said = [turns[-1]["content"] for turns in talks.values()]
        made = {name: self._worse(turns[-1]["content"], said, name, ctx) for name, turns in talks.items()}
        parts = {name: (turns[:-1], turns[-1:], [turns[-1] | {"content": made[name]}])
                 for name, turns in talks.items() if made[name] is not None}
        told = {f"new_{part}": pa.array([json.dumps(one[i], ensure_ascii=False) for one in parts.values()],
                                        pa.large_string()) for i, part in enumerate(PAIR)}
        new = attach(rows, pa.table({"id": pa.array(list(parts), pa.large_string())} | told))
        kept = new.with_columns({part: new[f"new_{part}"].fill_null(new[part]) for part in PAIR})
        return kept.select(*rows.column_names)

    def _worse(self, answer: str, said: list[str], name: str, ctx: Context) -> str | None:
        """A worse answer, or None where none was found."""
        draw = random.Random(f"{ctx.seed}/{name}")
        for _ in range(8):
            worse = _made(draw.choice(self.how), answer, said, draw)
            if worse.strip() and worse != answer:
                return worse
        return None


def _answered(turns: list[dict[str, Any]]) -> bool:
    return turns[-1]["role"] == "assistant" and bool(str(turns[-1].get("content") or "").strip())


def _made(how: str, answer: str, said: list[str], draw: random.Random) -> str:
    words = answer.split()
    if how == "other":
        return draw.choice(said)
    if how == "repeated":
        return f"{answer} {answer}"
    if how == "cut":
        return " ".join(words[:max(3, len(words) // 2)])
    draw.shuffle(words)
    return " ".join(words)
