"""iTool: finds the calls that a model is unsure of, and at which step of them it goes wrong, by a tree
search.

"Boosting Tool Use of Large Language Models via Iterative Reinforced Fine-Tuning" (arXiv 2501.09766). Of
conversations with a right answer, those with the highest perplexity of it under the model of before
(``from.model``) are taken: ``share`` of the calls (answers that are JSON or begin with ``[``), and as large a
share of the other answers. For each a tree of answers is grown, ``iterations`` times:

    select     from the root on the child with the largest value / (visits + 1) +
               explore * prob * sqrt(ln(visits of its parent) / (visits + 1))
    expand     ``candidates`` continuations of ``step`` tokens, drawn at ``temperature``, ``depth`` deep at
               most; prob is the mean probability of a step's tokens. Each begins with the value
               +0.1 if it ends as the right answer does, else -0.1; plus overlap - 0.5
               overlap: the words it shares with the right answer, by the words of the shorter of both
    simulate   the best of them is written to its end, and rated
    back       the rating is added to the value of each node on the way, and 1 to its visits

The rating is the model's own: it is asked how good the answer is, from A to D, and the rating is (P(A) + 0.1
P(B) - P(C) - 2 P(D)) / 4; with ``task``, whose answers a program checks, it is grade / 4 - (1 - grade) / 2
instead, between the same ends. Then, at each node,

    chosen, rejected = its children with the highest and the lowest value, if these are ``gap`` apart or more,
    the
                       highest is at least ``least``, and their steps overlap by no more than ``alike``
    prompt           = all that stands before both: the question and the steps on the way

So a pair differs in one step, and the best step is one that the model has drawn, not the right answer's.
Learn them with ``{ use = "examples", fields = ["chosen", "rejected"], ends = false }``, since steps go on,
and ``dpo`` (the authors' script: ``variant = "simpo", beta = 2.5, margin = 0.5``, a rate of 1e-6). In a
``repeat`` each round finds the deficiencies of the model of the round before. Count what the search costs:
the baseline is more examples for the same compute.

Pairs become documents of their own, with ``origin``, in the domain ``domain``; everything else stays what it
is. Left out: the warm-up from easy to hard, which is an order of examples before the first round.

Errors: no ``from.model``, or one without a chat template; no conversation with an answer; no pair.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from trainwright.core.errors import UserError
from trainwright.core.method import Curate
from trainwright.core.settings import Between, Count, Positive, Rate
from trainwright.core.stage import Role

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.align._drawn import Writer
    from trainwright.core.context import Context

Turns = list[dict[str, Any]]
RATINGS = {"A": 0.25, "B": 0.025, "C": -0.25, "D": -0.5}
BEST, WORST = RATINGS["A"], RATINGS["D"]
RATE = (
    "Request:\n{question}\n\nAnswer:\n{answer}\n\nHow good is the answer? A: right, B: nearly, C: poor, "
    "D: wrong. Reply with one letter:"
)
END = 0.1


@dataclass
class Node:
    """A step of an answer."""

    text: str = ""
    """The answer up to its end."""
    step: str = ""
    depth: int = 0
    value: float = 0.0
    visits: int = 0
    prob: float = 1.0
    ended: bool = False
    """Whether the answer ends with it."""
    children: list[Node] = field(default_factory=list)


class Itool(Curate):
    """Writes preference pairs of single steps, found by a tree search on what the model is unsure of."""

    share: Annotated[float, Between(0, 1, above=True)] = 0.3
    """Share of the answers, those of the highest perplexity, for which a tree is grown."""
    iterations: Count = 5
    """Times that each tree grows."""
    candidates: Annotated[int, Between(2, 1000)] = 3
    """Continuations of a node."""
    step: Count = 16
    """Tokens of a step at most."""
    depth: Count = 3
    """Steps of an answer that are searched through."""
    temperature: Positive = 1.5
    """At which steps are drawn."""
    explore: Rate = 1.0
    """Factor of what speaks for children that were seldom visited."""
    gap: Rate = 0.1
    """How far apart the values of a pair are at least."""
    least: Annotated[float, Between(-100, 100)] = -0.3
    """Value of a chosen step at least."""
    alike: Annotated[float, Between(0, 1)] = 0.95
    """Overlap of the steps of a pair at most."""
    new_tokens: Count = 64
    """Tokens of an answer at most."""
    task: dict[str, Any] = field(default_factory=dict)
    """The task that rates answers, such as { use = "tool_calls" }; by default the model does."""
    domain: str = "steps"
    """Domain of the pairs."""
    batch_size: Count = 64
    """Steps that are written at once."""
    roles: ClassVar[dict[str, Role]] = {"model": Role(needed=True)}
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "answers are compared with each other; what a model said is not said "
        "again for each look"
    }
    example: ClassVar[dict[str, Any]] = {
        "share": 0.2,
        "iterations": 2,
        "step": 2,
        "depth": 2,
        "new_tokens": 4,
        "gap": 0.0,
        "least": -5.0,
        "alike": 1.0,
        "task": {"use": "matches", "pattern": "[aeiou]", "whole": False},
    }

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.align._drawn import Writer
        from trainwright.corpus.selecting import columns, settled
        from trainwright.corpus.sources import document, table, union

        rows = settled(documents, ctx)
        found = columns(rows.where(rows["messages"].not_null()), "id", "messages").sort_by("id").to_pylist()
        asked = {
            one["id"]: turns
            for one in found
            if len(turns := json.loads(one["messages"])) > 1 and turns[-1]["role"] == "assistant"
        }
        if not asked:
            raise UserError("itool: no document that came in is a conversation with an answer.")
        writer = Writer.of(ctx.path("model"), ctx, self.name)
        chosen = self.deficient(asked, writer.perplexities(asked, self.batch_size))
        trees = self.grown({name: asked[name] for name in chosen}, writer, ctx)
        made = []
        for name, root in trees.items():
            start = writer.prompt(asked[name][:-1])
            for number, (before, good, bad) in enumerate(self.pairs(root)):
                made.append(
                    document(
                        id=f"{name}#step/{number}",
                        domain=self.domain,
                        source=self.name,
                        origin=name,
                        columns={"prompt": start + before, "chosen": good, "rejected": bad},
                    )
                )
        ctx.note("itool/searched", float(len(trees)))
        ctx.note("itool/pairs", float(len(made)))
        if not made:
            raise UserError(
                f"itool: in {len(trees)} trees no two steps are far enough apart: lower gap or least."
            )
        return union(rows, table(self.name, [partial(iter, made)]))

    # ---- where the model is weak -------------------------------------------------------------------------

    def deficient(self, asked: dict[str, Turns], perplexities: dict[str, float]) -> list[str]:
        """The conversations of the highest perplexity: a share of the calls, and of the other answers."""
        calls = {
            name for name, turns in asked.items() if str(turns[-1]["content"]).lstrip()[:1] in ("{", "[")
        }
        out = []
        for part in ([n for n in asked if n in calls], [n for n in asked if n not in calls]):
            ranked = sorted(part, key=lambda name: (-perplexities[name], name))
            out += ranked[: math.ceil(self.share * len(ranked))]
        return out

    # ---- the search --------------------------------------------------------------------------------------

    def grown(self, asked: dict[str, Turns], writer: Writer, ctx: Context) -> dict[str, Node]:
        """A tree for each conversation; all of them grow at once."""
        trees = {name: Node() for name in asked}
        rate = self._rater(asked, writer, ctx)
        for turn in range(self.iterations):
            ways = {name: way for name, root in trees.items() if (way := self.selected(root)) is not None}
            if not ways:
                break
            self._expand({name: way[-1] for name, way in ways.items()}, asked, writer, turn)
            for way in ways.values():
                way.append(max(way[-1].children, key=lambda child: child.value))
            ends = {name: way[-1] for name, way in ways.items()}
            answers = {name: node.text for name, node in ends.items()}
            open_ = {name: node.text for name, node in ends.items() if not node.ended}
            rest = writer.steps(
                {n: asked[n][:-1] for n in open_},
                1,
                self.new_tokens,
                self.temperature,
                self.batch_size,
                open_,
                f"{turn}/rest",
            )
            answers |= {name: answers[name] + said[0].text for name, said in rest.items()}
            for name, rating in rate(answers).items():
                for node in ways[name]:
                    node.value, node.visits = node.value + rating, node.visits + 1
        return trees

    def selected(self, root: Node) -> list[Node] | None:
        """The way to a node that may have children and has none; None where there is no such node."""
        way = [root]
        while way[-1].children:
            parent = way[-1]
            room = [child for child in parent.children if self._grows(child)]
            if not room:
                return None
            way.append(max(room, key=lambda child: self.worth(child, parent)))
        return way

    def worth(self, child: Node, parent: Node) -> float:
        """What speaks for going on with a child."""
        seldom = math.sqrt(math.log(max(1, parent.visits)) / (child.visits + 1))
        return child.value / (child.visits + 1) + self.explore * child.prob * seldom

    def _grows(self, node: Node) -> bool:
        if node.ended or node.depth >= self.depth:
            return False
        return not node.children or any(self._grows(child) for child in node.children)

    def _expand(self, nodes: dict[str, Node], asked: dict[str, Turns], writer: Writer, turn: int) -> None:
        said = writer.steps(
            {name: asked[name][:-1] for name in nodes},
            self.candidates,
            self.step,
            self.temperature,
            self.batch_size,
            {name: node.text for name, node in nodes.items()},
            str(turn),
        )
        for name, node in nodes.items():
            gold = str(asked[name][-1]["content"])
            for one in said[name]:
                child = Node(
                    node.text + one.text, one.text + one.end, node.depth + 1, prob=one.prob, ended=one.ended
                )
                child.value = first_value(child.text, gold)
                node.children.append(child)

    def _rater(self, asked: dict[str, Turns], writer: Writer, ctx: Context) -> Any:
        """What rates answers by the names of their conversations."""
        questions = {
            name: next((str(m["content"]) for m in reversed(turns[:-1]) if m["role"] == "user"), "")
            for name, turns in asked.items()
        }
        if self.task:
            from trainwright.core import registry

            grade = registry.create(self.task, ctx.root, "itool: task").grader(ctx)

            def graded(answers: dict[str, str]) -> dict[str, float]:
                grades = {name: grade(questions[name], said) for name, said in answers.items()}
                return {name: WORST + g * (BEST - WORST) for name, g in grades.items() if not math.isnan(g)}

            return graded
        from trainwright.lm.grading import Grader

        grader = Grader.of(ctx.path("model"), RATINGS, ctx, self.name, 1024, 8192)

        def rated(answers: dict[str, str]) -> dict[str, float]:
            prompts = [
                grader.ids(RATE, {"question": questions[name], "answer": said})
                for name, said in answers.items()
            ]
            return dict(zip(answers, grader.grades(prompts).tolist(), strict=True))

        return rated

    # ---- the pairs ---------------------------------------------------------------------------------------

    def pairs(self, node: Node) -> Iterator[tuple[str, str, str]]:
        """Of a node and all below it: what stands before, the best step, the worst step."""
        if node.children:
            best, worst = (pick(node.children, key=lambda child: child.value) for pick in (max, min))
            apart = best.value - worst.value
            fits = best.value >= self.least and best.step and worst.step and best.step != worst.step
            if fits and apart >= self.gap and overlap(best.step, worst.step) <= self.alike:
                yield node.text, best.step, worst.step
        for child in node.children:
            yield from self.pairs(child)


def first_value(text: str, gold: str) -> float:
    """The value of a step before it is visited."""
    ends = text.rstrip()[-2:] == gold.rstrip()[-2:]
    return (END if ends else -END) + overlap(text, gold) - 0.5


def overlap(one: str, other: str) -> float:
    """Words of both, by the words of the shorter."""
    words, others = set(one.split()), set(other.split())
    return len(words & others) / max(1, min(len(words), len(others)))
