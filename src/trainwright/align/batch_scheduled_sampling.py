"""Batch-scheduled sampling: in the context of what is learned, some tokens are the model's own.

"Bridging the Training-Inference Gap in LLMs by Leveraging Self-Generated Tokens" (arXiv 2410.14655). A model
that is trained on right contexts alone meets, when it writes, its own mistakes. Offline, for the batches of
``every`` steps at once, the model of now samples its own answer o to each prompt x, at ``temperature``. With
y the right answer, of tokens y_1 .. y_n, the row that is learned is

    input     x, c_1 .. c_n      c_t = o_t with probability eps where o has a token there, else y_t
    targets   y_1 .. y_n         always the right ones: of place t, what is right behind c_1 .. c_(t-1)

with eps rising evenly from ``start`` to ``own`` over the stage. Of a share ``corrected`` of the rows the
model learns to correct itself instead (reference-answer-based correction), without loss on its own answer:

    input     x, o, marker, y    targets: y

It stands behind a data method whose rows are one document each (``examples``); of a document with several
answers each is sampled behind the right ones before it, and corrections are made of those with a single
answer that fit into the row. What is drawn depends on seed, step and row alone. The token with which the
model ends its answer is no token of o. Logs ``own/share`` (eps) and ``own/other`` (share of replaced tokens
that are not the right ones).

Only the abstract of the paper was at hand: the schedule, the alignment by position and the marker are ours.

Not for a model that cannot answer yet: its tokens are noise. The tokens of a whole answer are sampled to
learn from them once: a step costs about as much as one of reinforcement.

Errors: rows of several documents, or without targets; a model that writes no text, or is no causal one.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainwright import families
from trainwright.align._sampled import parted
from trainwright.core import sharding
from trainwright.core.batches import join
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch, Data, State
from trainwright.core.settings import Between, Count
from trainwright.lm.generation import COLDEST, Prompt, end_tokens, sampled, writes

Share = Annotated[float, Between(0, 1)]


class Span(NamedTuple):
    """An answer in a row: the place that predicts its first token, and that of its last."""

    row: int
    first: int
    last: int


class BatchScheduledSampling(Data):
    """Replaces some tokens of answers, in the context alone, by the model's own."""

    own: Share = 0.25
    """Probability of the model's own token at the end of the stage."""
    start: Share = 0.0
    """The same at its beginning."""
    corrected: Share = 0.0
    """Share of rows in which the model's own answer stands before the right one."""
    marker: str = "\nCorrection: "
    """What stands between the two."""
    every: Count = 8
    """Steps whose rows are sampled at once."""
    temperature: Annotated[float, Between(COLDEST, 1 / COLDEST)] = 1.0
    """By which scores are divided before a token is drawn."""
    sample_size: Count = 64
    """Answers that are sampled at once."""
    beside: ClassVar[tuple[dict[str, Any], ...]] = (
        {"use": "examples", "length": 32, "domains": ["chat"]}, {"use": "supervised"})
    example: ClassVar[dict[str, Any]] = {"own": 0.5, "start": 0.5, "corrected": 0.25, "every": 1}

    def init(self, model: nn.Module, ctx: Context) -> State:
        if ctx.tokenizer is None or not writes(model) or families.family_of(model).name != "causal_lm":
            raise UserError("batch_scheduled_sampling: it needs a causal language model that writes text, "
                            "and a tokenizer.")
        return {"shared": {"left": 0, "rows": {}, "plain": {}}}

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        held = state["shared"]
        if not held["left"]:
            self._phase(held, pull, ctx)
        at = self.every - held["left"]
        held["left"] -= 1
        each = len(held["rows"]["input_ids"]) // self.every
        own = range(at * each, (at + 1) * each)[ctx.rows(each)]
        return {name: t[own.start:own.stop] for name, t in held["rows"].items()} | held["plain"]

    def _phase(self, held: dict[str, Any], pull: Callable[[], Batch], ctx: Context) -> None:
        """The rows of the next steps, of all ranks, each rank the same."""
        batches = [pull() for _ in range(self.every)]
        first = batches[0]
        if "targets" not in first or "input_ids" not in first or first.get("packed"):
            raise UserError("batch_scheduled_sampling: it needs rows of one document each, with targets: put "
                            "it behind { use = \"examples\" }.")
        if "logp" in first:
            raise UserError("batch_scheduled_sampling: answers of a rollout are the model's own already, and "
                            "with other tokens before them their log-probabilities would not be theirs.")
        every = [join([batch]) for batch in batches]
        rows = {name: torch.cat([b[name] for b in every]) for name, t in first.items()
                if isinstance(t, Tensor)}
        share = self.start + (self.own - self.start) * min(1.0, ctx.step / max(1, ctx.steps - 1))
        ctx.note("own/share", share)
        found = spans(rows["targets"])
        said: dict[Span, list[int]] = {}
        for size in sorted({span.last - span.first for span in found}):   # ranks write texts of one length
            alike = [span for span in found if span.last - span.first == size]
            said |= zip(alike, parted(alike, lambda mine: self._said(mine, rows, ctx), ctx), strict=True)
        held["rows"] = self._mixed(rows, said, share, ctx)
        plain = {name: v for name, v in first.items() if not isinstance(v, Tensor)}
        held["plain"] = {name: list(v) if isinstance(v, tuple) else v for name, v in plain.items()}
        held["left"] = self.every

    def _said(self, mine: Sequence[Span], rows: dict[str, Tensor], ctx: Context) -> list[list[int]]:
        """The model's own answers in place of those spans, without the token that ends them."""
        prompts = [Prompt(rows["input_ids"][s.row, :s.first + 1].tolist(), s.last - s.first + 1,
                          ctx.rng(f"batch_scheduled_sampling/{s.row}/{s.first}").initial_seed(),
                          self.temperature) for s in mine]
        said = sampled(ctx.policy, ctx.tokenizer, prompts, ctx, batch_size=self.sample_size,
                       together=sharding.world() > 1)
        ends = end_tokens(ctx.policy, ctx.tokenizer)
        return [one.ids[:-1] if one.ids[-1] in ends else one.ids for one in said]

    def _mixed(self, rows: dict[str, Tensor], said: Mapping[Span, Sequence[int]], share: float,
               ctx: Context) -> dict[str, Tensor]:
        out = rows | {name: rows[name].clone() for name in ("input_ids", "targets", "attention_mask")
                      if name in rows}
        answers_of = Counter(span.row for span in said)
        many = other = 0
        for span, answer in said.items():
            draw = torch.rand(1 + len(answer), generator=ctx.rng(f"own/{span.row}/{span.first}"))
            alone = answers_of[span.row] == 1
            if alone and draw[0] < self.corrected and self._correct(out, span, answer, ctx):
                continue
            room = out["input_ids"].shape[1] - span.first - 1  # a row's last token is no context
            for t, token in enumerate(answer[:room]):
                if draw[1 + t] < share:
                    many, other = many + 1, other + (token != int(rows["targets"][span.row, span.first + t]))
                    out["input_ids"][span.row, span.first + 1 + t] = token
        if many:
            ctx.note("own/other", other / many, weight=many)
        if "document" in out and "attention_mask" in out:
            out["document"] = out["attention_mask"] - 1
        return out

    def _correct(self, out: dict[str, Tensor], span: Span, answer: Sequence[int], ctx: Context) -> bool:
        """Put the model's own answer before the right one, where both fit into the row."""
        row, between = span.row, ctx.tokenizer(self.marker, add_special_tokens=False)["input_ids"]
        begin = out["input_ids"][row, :span.first + 1].tolist() + [*answer, *between]
        right = out["targets"][row, span.first:span.last + 1].tolist()
        if len(begin) + len(right) > out["input_ids"].shape[1]:
            return False
        made = torch.tensor(begin + right)
        out["input_ids"][row], out["targets"][row] = 0, UNTRAINED
        out["input_ids"][row, :len(made)] = made
        out["targets"][row, len(begin) - 1:len(made) - 1] = made[len(begin):]
        if "attention_mask" in out:
            out["attention_mask"][row] = (torch.arange(out["targets"].shape[1]) < len(made)).long()
        return True


def spans(targets: Tensor) -> list[Span]:
    """The answers in rows: stretches of places at which something is learned, in order of row and place."""
    edge = F.pad((targets != UNTRAINED).long(), (1, 1)).diff(dim=1)
    begins, ends = (edge == 1).nonzero().tolist(), (edge == -1).nonzero().tolist()
    return [Span(row, first, after - 1) for (row, first), (_, after) in zip(begins, ends, strict=True)]
