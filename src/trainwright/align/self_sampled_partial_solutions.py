"""Learns from the model's own right programs, and from the right beginnings of its wrong ones.

"Learning Math Reasoning from Self-Sampled Correct and Partially-Correct Solutions" (arXiv 2205.14318). Each
problem has a buffer: programs that are known to be right, which begins with the one of its document, and
beginnings of programs that are known to lead somewhere, which begins with the empty one. In each step the
model draws a program for every problem of the batch, going on from a beginning drawn from the buffer
(``partial``), and it is executed statement by statement.

    state      the values of all variables after a statement, sorted; names do not count
    right      the variable ``answer`` has the value that it has in the document's program
    partly     the longest beginning whose state some known program of the problem passes through; what comes
               after a wrong ``answer`` is not looked at

What is right, or partly, is kept if it is new and has at most ``longer`` statements more than the shortest
program known; a beginning of a program that is kept is dropped. Learned are all that are kept, ``most`` at
most, the document's first and the newest next, with p_i the probability of program i:

    objective      the loss of a problem
    mle            - sum_i log p_i
    mml            - log sum_i p_i
    beta_mml       - 1/beta log sum_i p_i^beta

A whole program ends with the token that ends an answer; a beginning does not, or the model would learn to
stop early. Programs are lines ``name = value`` or ``name = value operation value`` with + - * / of numbers
and variables; nothing is handed to Python. Documents are conversations whose answer is such a program; one
that is none is learned as it is. Logs ``self_sampled/right``, ``self_sampled/partly`` (shares of what was
drawn) and ``self_sampled/kept`` (programs and beginnings a problem). Measure the share that is right at one
draw and among many: the first may fall while the second rises.

The authors' code multiplies mle by beta as well, and learns the problem's text, too; neither is done here. It
is the data and the objective of its stage; ``pack`` and ``supervised`` have no place beside it.

Errors: no tokenizer or no causal model; documents without an answer; one whose prompt leaves no room.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainwright import families
from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch, Data, Objective, State
from trainwright.core.settings import Between, Count, Positive, Row
from trainwright.data.order.examples import documents_of, order
from trainwright.lm.asking import COLUMNS, asked
from trainwright.lm.generation import Prompt, sampled, writes
from trainwright.lm.logprobs import token_logprobs

ANSWER = "answer"
OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}
LARGEST = 10**12
"""Beyond which a number is no result: products of products soon fill the memory."""
States = list[str]


class SelfSampledPartialSolutions(Data, Objective):
    """Draws programs, keeps what is right of them, and learns all that is kept, one number a problem."""

    objective: Literal["mle", "mml", "beta_mml"] = "mle"
    """How several programs of a problem are learned."""
    beta: Annotated[float, Between(0, 1, above=True)] = 0.25
    """Exponent of beta_mml: near 0 all programs count alike, at 1 it is mml."""
    partial: bool = True
    """Whether beginnings are kept and gone on from."""
    most: Count = 4
    """Programs and beginnings of a problem that are learned at once."""
    longer: Annotated[int, Between(0, 1000)] = 0
    """Statements by which a program may be longer than the shortest that is known."""
    temperature: Positive = 0.8
    """At which programs are drawn."""
    new_tokens: Count = 100
    """Tokens of a program at most."""
    length: Row = 256
    """Tokens of problem and program at most."""
    domains: tuple[str, ...] = ()
    """Domains to take; all of them by default."""
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    example: ClassVar[dict[str, Any]] = {"domains": ["chat"], "new_tokens": 4, "length": 32, "most": 2}

    def init(self, model: nn.Module, ctx: Context) -> State:
        if ctx.tokenizer is None or not writes(model) or families.family_of(model).name != "causal_lm":
            raise UserError(
                f"{self.name}: it needs a causal language model that writes text, and a tokenizer."
            )
        if ctx.decode:
            raise UserError(f"{self.name}: {ctx.decode[0].name} would change what is drawn: leave it out.")
        return {"shared": {"problems": 0, "known": {}}}

    def epoch(self, ctx: Context) -> int:
        return len(documents_of(ctx.path("data"), "train", self.domains))

    # ---- data ----------------------------------------------------------------------------------------------

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        held, found = state["shared"], documents_of(ctx.path("data"), "train", self.domains)
        first = held["problems"]
        held["problems"] += ctx.batch_rows
        numbers = [
            int(order(len(found), ctx.seed, n // len(found))[n % len(found)])
            for n in range(first, first + ctx.batch_rows)
        ]
        rows = found.rows(numbers, COLUMNS)
        prompts = [asked(row, ctx.policy, ctx.tokenizer, self.name).ids for row in rows]  # type: ignore[arg-type]
        buffers = [Buffer.of(held["known"].get(row["id"]), _gold(row), self.longer) for row in rows]
        drawn = self._drawn(prompts, buffers, first, ctx)
        kinds = [buffer.take(text, self.partial) for buffer, text in zip(buffers, drawn, strict=True)]
        for row, buffer in zip(rows, buffers, strict=True):
            held["known"][row["id"]] = buffer.told()
        for kind in ("right", "partly"):
            ctx.note(f"self_sampled/{kind}", kinds.count(kind) / len(kinds))
        ctx.note(
            "self_sampled/kept", sum(len(b.programs) + len(b.beginnings) for b in buffers) / len(buffers)
        )
        mine = range(len(rows))[ctx.rows(ctx.batch_rows)]
        return self._batch([prompts[i] for i in mine], [buffers[i] for i in mine], ctx)

    def _drawn(
        self, prompts: Sequence[list[int]], buffers: Sequence[Buffer], first: int, ctx: Context
    ) -> list[str]:
        """A program to each problem, with the beginning that it goes on from; every rank its part."""
        mine = range(len(prompts))[ctx.rows(len(prompts))]
        begun, asking = [], []
        for i in mine:
            draw = ctx.rng(f"{self.name}/{first + i}", at=0)
            start = buffers[i].beginnings[int(torch.randint(len(buffers[i].beginnings), (), generator=draw))]
            ids = [*prompts[i], *self._ids(start, ctx)]
            room = min(self.new_tokens, self.length - len(ids))
            if room < 1:
                raise UserError(
                    f"{self.name}: a problem of {len(prompts[i])} tokens leaves no room for a program in "
                    f"length = {self.length}."
                )
            begun.append(start)
            asking.append(Prompt(ids, room, draw.initial_seed() ^ 1, self.temperature))
        said = sampled(ctx.policy, ctx.tokenizer, asking, ctx, batch_size=64, together=sharding.world() > 1)
        texts = [
            start + ctx.tokenizer.decode(one.ids, skip_special_tokens=True)
            for start, one in zip(begun, said, strict=True)
        ]
        return [one for part in sharding.gather(texts) for one in part]

    def _ids(self, text: str, ctx: Context) -> list[int]:
        return list(ctx.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _batch(self, prompts: Sequence[list[int]], buffers: Sequence[Buffer], ctx: Context) -> Batch:
        """``program_ids``, ``program_attention_mask`` and ``program_targets`` [R, most, L], and
        ``program_there`` [R, most]."""
        end, shape = _end(ctx), (len(prompts), self.most, self.length)
        ids, targets = torch.zeros(shape, dtype=torch.int64), torch.full(shape, UNTRAINED)
        seen = torch.zeros_like(ids)
        for row, (prompt, buffer) in enumerate(zip(prompts, buffers, strict=True)):
            for place, (text, whole) in enumerate(buffer.learned(self.most)):
                said = [*self._ids(text, ctx), *([end] if whole and end is not None else [])]
                line = torch.tensor([*prompt, *said][: self.length])
                ids[row, place, : len(line)], seen[row, place, : len(line)] = line, 1
                targets[row, place, len(prompt) - 1 : len(line) - 1] = line[len(prompt) :]
        return {
            "program_ids": ids,
            "program_attention_mask": seen,
            "program_targets": targets,
            "program_there": (targets != UNTRAINED).any(-1),
            "packed": False,
        }

    # ---- objective -----------------------------------------------------------------------------------------

    def count(self, batch: Batch) -> float:
        if "program_there" not in batch:
            raise UserError(
                f"{self.name}: it is the data method of its stage as well: leave the other one out."
            )
        return float(batch["program_there"].any(1).sum())

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        there = batch["program_there"]
        targets = batch["program_targets"][there]
        width = int((targets != UNTRAINED).any(0).nonzero().max()) + 1 if len(targets) else 1
        places = torch.arange(width, device=targets.device).expand(len(targets), width)
        rows = {
            "input_ids": batch["program_ids"][there][:, :width],
            "targets": targets[:, :width],
            "position_ids": places,
            "packed": False,
        }
        sums = token_logprobs(model, rows).logp.sum(1)
        logp = sums.new_full(there.shape, float("-inf")).masked_scatter(there, sums)
        return torch.where(there.any(1), self.loss_of(logp), 0)

    def loss_of(self, logp: Tensor) -> Tensor:
        """Of each problem [R], given log-probabilities of its programs [R, K], -inf where there is none."""
        if self.objective == "mle":
            return -torch.where(logp.isinf(), 0, logp).sum(1)
        beta = self.beta if self.objective == "beta_mml" else 1.0
        return -(beta * torch.where(logp.isinf().all(1, keepdim=True), 0, logp)).logsumexp(1) / beta


# ---- a problem's buffer ------------------------------------------------------------------------------------


@dataclass
class Buffer:
    """What is known of a problem: right programs, beginnings, and the states that they pass through."""

    programs: list[str]
    beginnings: list[str] = field(default_factory=lambda: [""])
    longer: int = 0
    states: set[str] = field(default_factory=set)
    answer: str = ""

    @classmethod
    def of(cls, told: dict[str, list[str]] | None, gold: str, longer: int) -> Buffer:
        told = told or {"programs": [gold], "beginnings": [""]}
        made = cls(list(told["programs"]), list(told["beginnings"]), longer)
        made.answer = answer_of(gold)
        for text in (*made.programs, *made.beginnings):
            made.states.update(states_of(text))
        return made

    def told(self) -> dict[str, list[str]]:
        return {"programs": self.programs, "beginnings": self.beginnings}

    def take(self, text: str, partial: bool) -> str:
        """Keep what is right of a program: ``right``, ``partly`` or ``wrong``."""
        lines = [one.strip() for one in text.strip().splitlines()]
        run, end = run_through(lines)
        if not self.answer:
            return "wrong"
        right = end == self.answer
        if right:
            many = len(run)
        else:  # what comes after a wrong answer is not looked at
            looked = run[:-1] if end else run
            many = next((i + 1 for i in reversed(range(len(looked))) if looked[i] in self.states), 0)
        if not many or not (right or partial):
            return "wrong"
        kept = "\n".join(lines[:many]) + ("" if right else "\n")
        known = self.programs if right else self.beginnings
        shortest = min(len(one.splitlines()) for one in self.programs)
        if (
            kept not in known
            and many - shortest <= self.longer
            and not any(one.startswith(kept) for one in self.programs + self.beginnings if one != kept)
        ):
            known.append(kept)
            self.states.update(run[:many])
            self.beginnings = [b for b in self.beginnings if not b or b == kept or not kept.startswith(b)]
        return "right" if right else "partly"

    def learned(self, most: int) -> list[tuple[str, bool]]:
        """The document's program, then the newest others, and of each whether it is whole."""
        others = [(p, True) for p in self.programs[1:]] + [(b, False) for b in self.beginnings if b]
        return [(self.programs[0], True), *others[::-1]][:most]


def run_through(lines: Sequence[str]) -> tuple[States, str]:
    """The states after each statement that can be executed, up to that of ``answer``, and its value."""
    values: dict[str, Fraction] = {}
    states: States = []
    for line in lines:
        try:
            name, value = _statement(line, values)
        except (ValueError, SyntaxError, ZeroDivisionError, RecursionError, MemoryError):
            break
        values[name] = value
        states.append(" ".join(sorted(map(str, values.values()))))
        if name == ANSWER:
            return states, str(value)
    return states, ""


def states_of(text: str) -> States:
    return run_through(text.splitlines())[0]


def answer_of(text: str) -> str:
    return run_through(text.splitlines())[1]


def _statement(line: str, values: dict[str, Fraction]) -> tuple[str, Fraction]:
    """The name and the value that a line sets.

    Raises:
        ValueError: it is no statement of this kind, or its number is too large.
    """
    body = ast.parse(line).body
    one = body[0] if len(body) == 1 else None
    if not isinstance(one, ast.Assign) or len(one.targets) != 1 or not isinstance(one.targets[0], ast.Name):
        raise ValueError(line)
    right = one.value
    if isinstance(right, ast.BinOp):
        if type(right.op) not in OPERATIONS:
            raise ValueError(line)
        value = OPERATIONS[type(right.op)](_term(right.left, values), _term(right.right, values))
    else:
        value = _term(right, values)
    if max(abs(value.numerator), value.denominator) > LARGEST:
        raise ValueError(line)
    return one.targets[0].id, value


def _term(node: ast.expr, values: dict[str, Fraction]) -> Fraction:
    if isinstance(node, ast.Name) and node.id in values:
        return values[node.id]
    if isinstance(node, ast.Constant) and type(node.value) in (int, float) and abs(node.value) < LARGEST:
        return Fraction(str(node.value))
    raise ValueError("no number")


def _gold(row: dict[str, Any]) -> str:
    turns = json.loads(row["messages"] or "[]")
    if not turns or turns[-1]["role"] != "assistant" or not str(turns[-1].get("content") or "").strip():
        raise UserError(
            f"self_sampled_partial_solutions: the document {row['id']!r} has no answer to learn from."
        )
    return "\n".join(line.strip() for line in str(turns[-1]["content"]).strip().splitlines())


def _end(ctx: Context) -> int | None:
    """The token that ends an answer."""
    told: Any = ctx.policy
    end = told.generation_config.eos_token_id
    end = ctx.tokenizer.eos_token_id if end is None else end
    return end[0] if isinstance(end, list) else end
