"""Writes what a scorer of conversations learns from: variants that a model evolved and then ranked together.

"What Makes Good Data for Alignment? A Comprehensive Study of Automatic Data Selection in Instruction
Tuning" (DEITA, arXiv 2312.15685): the training data of Evol-Complexity and Evol-Quality. From the first turn
of each conversation, x_0, a writer makes ``variants`` more, each from the one before it in a way that is
drawn at random,

    x_{m+1} = evolve(x_m),    m = 0 … variants - 1

harder instructions for ``what = "complexity"``, better answers to the same instruction for ``"quality"``.
It is then shown x_0 … x_variants at once, in an order that is drawn, and gives each a grade from 1 to 6:
ranked together, small differences show, while grades that are given one at a time are nearly all the same.

Each variant becomes a conversation in which the user asks for the grade in the words of ``score_evol``, and
the assistant says it; a training stage with ``supervised`` makes of them the scorer that ``score_evol``
asks. The conversations that are read are dropped, unless ``keep_originals``. The paper has 2,000 seeds, 5
variants, and ChatGPT as the writer; its own wordings are not used here.

A seed with an empty variant, or whose ranking does not give each variant a whole grade from 1 to 6, is left
out, and ``evol_grades/left_out`` counts those.

Not with a writer that cannot do the tasks itself: it cannot rank them either.

Errors: nobody to write, no conversation, a writer that fails (its answers so far are kept), no ranking that
can be read (unless the originals are kept).
"""
from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainwright.core.errors import UserError, suggest
from trainwright.core.method import Curate
from trainwright.core.settings import Count
from trainwright.core.stage import MODEL, Role
from trainwright.corpus.turns import Turn, turns
from trainwright.data.filter.score_evol import GRADES, PROMPTS, asked
from trainwright.lm.writing.documents import kept_table
from trainwright.lm.writing.prompts import cleaned, filled
from trainwright.lm.writing.writer import Request, Writer, Writing

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context
    from trainwright.corpus.sources import Row

WAYS = {
    "complexity": ("add one more condition that the answer must meet",
                   "ask about the same thing in more depth",
                   "put something specific in the place of something general",
                   "make it need several steps of thought where one was enough"),
    "quality": ("make it more helpful to who asked", "make it keep closer to what was asked",
                "explain more of the reasons", "give it a fresh idea or a telling example",
                "add details that matter")}
"""How a variant is made from the one before it."""
EVOLVE = {
    "complexity": "Rewrite the request below so that it is somewhat harder: {way}. It must stay a request "
                  "that can be answered. Reply with the new request alone.\n\nRequest:\n{instruction}",
    "quality": "Below are a request and an answer to it. Improve the answer: {way}. Reply with the new "
               "answer alone.\n\nRequest:\n{instruction}\n\nAnswer:\n{response}"}
VERDICT = ("\n\n{texts}\n\nThen give each a grade from 1 (lowest) to 6 (highest). Reply with one JSON object "
           "and nothing else, from the number of each to its grade, such as {\"1\": 2, \"2\": 5}.")
RANK = {
    "complexity": "Compare the {many} requests below, and rank them by how complex the tasks are that they "
                  "set." + VERDICT,
    "quality": "Compare the {many} answers below to one request, and rank them by how good they are.\n\n"
               "Request:\n{instruction}" + VERDICT}


class EvolGrades(Curate):
    """Replaces conversations by examples of how their evolved variants are graded."""

    what: Literal["complexity", "quality"]
    """What evolves and is graded: instructions, or answers."""
    variants: Count = 5
    """Variants beside the original."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Wordings of your own: ``grade``, in which a scorer is asked (as in ``score_evol``), ``evolve``
    (``{way}``, ``{instruction}``, ``{response}``), ``rank`` (``{many}``, ``{instruction}``, ``{texts}``)."""
    domain: str = ""
    """Domain of the examples; default: that of the conversation."""
    keep_originals: bool = False
    """Whether the conversations that are read stay in the corpus."""
    writer: Writer = Writer(max_tokens=1024)
    """Who evolves and ranks, and how."""
    roles: ClassVar[dict[str, Role]] = {"model": MODEL}
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "what was written is kept, so that an interrupted stage asks for nothing "
        "twice"
    }
    example: ClassVar[dict[str, Any]] = {"what": "complexity", "variants": 1, "keep_originals": True,
                                         "prompts": {"evolve": "{instruction}", "rank": "{texts}"},
                                         "writer": {"max_tokens": 2, "at_once": 64}}

    def __post_init__(self) -> None:
        needed = {"grade": "{instruction}", "evolve": "{instruction}", "rank": "{texts}"}
        for name, prompt in self.prompts.items():
            if name not in needed:
                raise ValueError(f"there is no prompt {name!r}{suggest(name, needed)}")
            part = "{response}" if name != "rank" and self.what == "quality" else needed[name]
            if part not in prompt:
                raise ValueError(f"the prompt {name!r} lacks {part}")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.selecting import columns, keep, settled
        from trainwright.corpus.sources import union
        rows = settled(documents, ctx)
        table = columns(rows, "id", "messages", "domain", "origin").sort_by("id").to_pylist()
        seeds = [one | {"turn": said[0]} for one in table if (said := turns(one["messages"]))]
        if not seeds:
            raise UserError(f"{self.name} has nothing to begin with: no conversation came in.")
        with self.writer.start(self.name, ctx) as writing:
            new = kept_table(self._examples(seeds, writing, ctx), ctx)
        if self.keep_originals:
            return union(rows, new)
        read = {one["id"] for one in seeds}
        return union(keep(rows, [one["id"] for one in table if one["id"] not in read]), new)

    def _examples(self, seeds: Sequence[dict[str, Any]], writing: Writing, ctx: Context) -> Iterator[Row]:
        from trainwright.corpus.sources import document
        evolved = self._evolved(seeds, writing, ctx.seed)
        orders = [random.Random(f"{self.name}/{ctx.seed}/{one['id']}").sample(range(len(variants)),
                                                                             len(variants))
                  for one, variants in zip(seeds, evolved, strict=True)]
        requests = (Request(f"{one['id']}#rank", self._ranking([variants[i] for i in order]), 0.0)
                    for one, variants, order in zip(seeds, evolved, orders, strict=True))
        template, good = self.prompts.get("grade", PROMPTS[self.what]), 0
        for at, (_, answer) in enumerate(writing.write(requests)):
            one, variants, shown = seeds[at], evolved[at], ranked(answer, len(orders[at]))
            if not shown or not all(turn.instruction and turn.response for turn in variants):
                continue
            good += 1
            for place, grade in zip(orders[at], shown, strict=True):
                turn = variants[place]
                said = [{"role": "user", "content": filled(template, **asked(template, turn))},
                        {"role": "assistant", "content": str(grade)}]
                yield document(id=f"{one['id']}#{self.what}/{place}", messages=said, source=self.name,
                               domain=self.domain or one["domain"], origin=one["origin"] or one["id"],
                               metadata={"original": one["id"], "variant": place, "grade": grade})
        ctx.note(f"{self.name}/left_out", float(len(seeds) - good))
        if not good and not self.keep_originals:
            raise UserError(f"{self.name}: the writer ranked the variants of none of {len(seeds):,} "
                            "conversations: it must reply with a JSON object from numbers to grades from 1 "
                            "to 6.")

    def _evolved(self, seeds: Sequence[dict[str, Any]], writing: Writing, seed: int) -> list[list[Turn]]:
        """The turn of each conversation and its variants, each made from the one before it."""
        found: list[list[Turn]] = [[one["turn"]] for one in seeds]
        changed = "instruction" if self.what == "complexity" else "response"
        for m in range(self.variants):
            requests = []
            for one, variants in zip(seeds, found, strict=True):
                way = random.Random(f"{self.name}/{seed}/{one['id']}/{m}").choice(WAYS[self.what])
                wording = self.prompts.get("evolve", EVOLVE[self.what])
                prompt = filled(wording, way=way, **variants[-1]._asdict())
                requests.append(Request(f"{one['id']}#evolve/{m}", prompt))
            for variants, (_, answer) in zip(found, writing.write(requests), strict=True):
                variants.append(variants[-1]._replace(**{changed: cleaned(answer)}))
        return found

    def _ranking(self, variants: Sequence[Turn]) -> str:
        """The prompt that shows all variants at once."""
        changed = [v.instruction if self.what == "complexity" else v.response for v in variants]
        shown = "\n\n".join(f"[{number}]\n{text}" for number, text in enumerate(changed, 1))
        return filled(self.prompts.get("rank", RANK[self.what]), many=str(len(variants)),
                      instruction=variants[0].instruction, texts=shown)


def ranked(answer: str, many: int) -> list[int]:
    """The grades of the texts 1 … ``many`` in an answer; none where it does not grade each of them."""
    try:
        found = json.loads(answer[answer.find("{"):answer.rfind("}") + 1])
        grades = [found[str(number)] for number in range(1, many + 1)]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    return [int(g) for g in grades] if all(str(g) in GRADES for g in grades) else []
