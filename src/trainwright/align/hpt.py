"""Hybrid post-training: a model learns from its answers where they succeed, else from a demonstration.

"Towards a Unified View of Large Language Model Post-Training" (arXiv 2509.04419): fine-tuning and
reinforcement are one estimator of four parts, which are settings here. Of a token of an answer, with pi the
model and den a likelihood that is held fixed,

    gradient = stable * 1 / den * A * d pi        loss = - stop(stable * pi / den * A) log pi

    stable        none: 1;  clip: 0 where the clip of PPO stops a token (``clip_low``, ``clip_high``), else 1
    denominator   sampler: what the answer was drawn with;  model: pi itself, so that the ratio is 1
    advantage     mean: the reward less its group's mean;  group: by the standard deviation, too;  reward;
                  one: 1, whatever the reward
    likelihood    of each token;  sequence: pi / den is the geometric mean over the answer

A demonstration has stable = 1, den = pi and A = 1: that is fine-tuning. PPO's clipped loss is clip, sampler,
reward; GRPO is clip, sampler, group; rejection sampling is none, model, reward; the defaults are the
authors'.

As a data method it stands behind ``rollout``: with c the answers of a prompt whose reward is ``right`` or
more, where c <= ``gamma`` (a count) the prompt's answers are dropped, all of them, and one row becomes the
demonstration, which is the answer in the document; elsewhere the answers stay and there is no demonstration.
An answer that was cut at ``new_tokens`` and has no grade (``finished`` of ``rollout``) is not right.

    divide     units, of which the loop takes the mean over the step
    prompt     prompts: the mean over the group's graded answers of their sums by ``new_tokens``, or
               ``demonstrations`` times the mean over the tokens of the demonstration
    answer     answers and demonstrations alike, each the mean over its tokens
    token      tokens of both

Less ``entropy`` times the entropy, of answers. Logs ``hpt/demonstrations`` (share of prompts), ``ratio``,
``clipped``, ``entropy`` and the mismatch (``_sampled.py``), which stops the stage as in ``grpo``. Of a batch
that is not of ``rollout``, ``loss`` takes each row for a demonstration.

The authors add the mean over answers and the mean over the tokens of demonstrations, of each micro-batch;
here both are prompts of one mean, so that a step is the same however it is cut. Left out: the soft mixing of
their code, which is not its default.

Not for prompts without an answer to show: with plain documents it is ``grpo``.

Errors: behind anything but ``rollout`` as a data method; a gated prompt without an answer; a mismatch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainwright.align._sampled import (
    MOST_MISMATCH,
    NOTHING,
    ROWS,
    SMALL,
    advantages,
    averaged,
    learned_of,
    mismatched,
    need,
    note_mismatch,
    ratio_of,
    stops,
    trimmed,
)
from trainwright.core.context import Context, View
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch, Command, Controller, Data, Objective, State
from trainwright.core.settings import Between, Positive, Rate
from trainwright.corpus.columns import CHOSEN, ID, MESSAGES, PROMPT, TEXT
from trainwright.corpus.tokens import open_corpus
from trainwright.data.order.examples import documents_of, inputs_of
from trainwright.lm.logprobs import Scored, token_logprobs
from trainwright.lm.losses import way_of


class Hpt(Data, Objective, Controller):
    """The unified estimator, with a gate by how many answers of a prompt succeed."""

    gamma: Annotated[int, Between(-1, 2**31 - 1)] = 0
    """Right answers up to which a prompt's demonstration takes the place of its answers; -1: never."""
    right: float = 1.0
    """Reward from which an answer is right."""
    stable: Literal["none", "clip"] = "none"
    """The mask: which tokens of answers have a gradient."""
    denominator: Literal["sampler", "model"] = "sampler"
    """The likelihood by which that of an answer is divided."""
    advantage: Literal["mean", "group", "reward", "one"] = "mean"
    """What an answer is worth."""
    likelihood: Literal["token", "sequence"] = "token"
    """What of an answer is compared with the denominator: each token, or all of it."""
    clip_low: Annotated[float, Between(0, 1)] = 0.2
    """How far a ratio may fall below 1, with stable = "clip"."""
    clip_high: Rate = 0.2
    """How far it may rise above 1."""
    divide: Literal["prompt", "answer", "token"] = "prompt"
    """What the loss is the mean of."""
    demonstrations: Rate = 1.0
    """Factor of the loss of demonstrations."""
    entropy: Rate = 0.001
    """Factor of the entropy of answers' tokens, which is held up."""
    most_mismatch: Positive = MOST_MISMATCH
    """Half the mean squared difference of the log-probabilities of sampling and training that stops the
    stage."""
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    beside: ClassVar[tuple[dict[str, Any], ...]] = ({"use": "rollout", **SMALL},)
    example: ClassVar[dict[str, Any]] = {"gamma": 1}

    def init(self, model: nn.Module, ctx: Context) -> State:
        way_of(model)                                          # runs it once, which is no cost of a step
        return {}

    def tick(self, view: View, state: State) -> Iterable[Command]:
        yield from mismatched(view, self.most_mismatch)

    # ---- the gate ------------------------------------------------------------------------------------------

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        batch = dict(pull())
        need(self.name, batch, ("group_rewards", "asked", "member"))
        right = (batch["group_rewards"] >= self.right) & (batch["group_graded"] > 0)
        gated = right.sum(1) <= self.gamma
        shown = gated & (batch["member"] == 0)
        ctx.note("hpt/demonstrations", gated.float().mean())
        for name in ("input_ids", "attention_mask", "targets", "logp"):
            batch[name] = batch[name].clone()
        batch["targets"][gated], batch["logp"][gated] = UNTRAINED, 0
        for row in shown.nonzero()[:, 0].tolist():
            for name, t in self._demonstration(batch, row, ctx).items():
                batch[name][row] = t
        return batch | {"demonstration": shown.long(), "document": batch["attention_mask"] - 1}

    def _demonstration(self, batch: Batch, row: int, ctx: Context) -> dict[str, Tensor]:
        """The row of the document that asked: its prompt, and its answer as what is learned."""
        folder, number = ctx.path("data"), [int(batch["asked"][row])]
        found = documents_of(folder, batch["split"], tuple(batch["selected"]))
        told = found.rows(number, (ID, PROMPT, CHOSEN, MESSAGES))[0]
        field = CHOSEN if told[PROMPT] and told[CHOSEN] else TEXT
        if field == TEXT and (told[PROMPT] or not told[MESSAGES]):
            raise UserError(
                f"hpt: too few answers to the document {told[ID]!r} are right, and it has none "
                "of its own to show: name the domains of documents that have one."
            )
        tokenizer = None if open_corpus(folder).tokenizer else ctx.tokenizer
        inputs = inputs_of(folder, (field,), batch["targets"].shape[1], None, tokenizer)
        made = inputs.batch(found.rows(number, inputs.columns))
        of = "" if field == TEXT else f"{field}_"
        names = {
            "input_ids": f"{of}ids" if of else "input_ids",
            "attention_mask": f"{of}attention_mask",
            "targets": f"{of}targets",
        }
        return {name: torch.from_numpy(made[one][0]) for name, one in names.items()}

    # ---- the estimator -------------------------------------------------------------------------------------

    def count(self, batch: Batch) -> float:
        learned = learned_of(batch)
        if self.divide == "token":
            return max(float(learned.sum()), NOTHING)
        there = learned.any(1).double()
        if self.divide == "prompt":
            there = there / self._answers(batch)
        return max(float(there.sum()), NOTHING)

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        rows = trimmed(batch) if "logp" in batch else {name: batch[name] for name in ROWS if name in batch}
        learned, shown = learned_of(rows), self._shown(batch)
        found = token_logprobs(model, rows, batch.get("temperature", 1.0))
        values = -found.logp
        if "logp" in batch:
            answers = self._answer_losses(found, rows, batch, ctx)
            values = torch.where(shown[:, None], self.demonstrations * values, answers)
        values = torch.where(learned, values, 0)
        if self.divide == "token":
            return nn.functional.pad(values, (0, batch["targets"].shape[1] - values.shape[1]))
        tokens = learned.sum(1).clamp(min=1)
        if self.divide == "prompt" and "logp" in batch:
            tokens = torch.where(shown, tokens, batch["new_tokens"] * self._answers(batch))
        return values.sum(1) / tokens.to(values.dtype)

    def _answer_losses(self, found: Scored, rows: Batch, batch: Batch, ctx: Context) -> Tensor:
        """The loss of each token of answers."""
        learned = learned_of(rows) & ~self._shown(batch)[:, None]
        with torch.no_grad():
            moved = torch.where(learned, found.logp - rows["logp"], 0)
            ratio = torch.ones_like(moved)
            if self.denominator == "sampler":
                way = averaged(moved, learned).expand_as(moved) if self.likelihood == "sequence" else moved
                ratio = ratio_of(way)
            better = self._worth(batch)[:, None].expand_as(moved)
            stopped = torch.zeros_like(learned)
            if self.stable == "clip":
                stopped = stops(ratio, better, self.clip_low, self.clip_high)
            if many := int(learned.sum()):
                for name, one in (("ratio", ratio), ("clipped", stopped.float()), ("entropy", found.entropy)):
                    ctx.note(name, one[learned].mean(), weight=many)
            note_mismatch(moved, learned, batch, ctx)
        return -torch.where(stopped, 0, ratio * better) * found.logp - self.entropy * found.entropy

    def _worth(self, batch: Batch) -> Tensor:
        """The advantage of each answer [R]."""
        match self.advantage:
            case "one":
                return torch.ones_like(batch["reward"])
            case "reward":
                return batch["reward"]  # type: ignore[no-any-return]
            case _:
                return advantages(batch, "group" if self.advantage == "group" else "none")

    def _shown(self, batch: Batch) -> Tensor:
        """Which rows are demonstrations, bool [R]."""
        if "demonstration" in batch:
            return batch["demonstration"] > 0  # type: ignore[no-any-return]
        return torch.full_like(batch["targets"][:, 0], "logp" not in batch, dtype=torch.bool)

    def _answers(self, batch: Batch) -> Tensor:
        """Of each row how many share its prompt [R]: the graded answers of its group, or a demonstration."""
        if "group_graded" not in batch:
            return torch.ones_like(batch["targets"][:, 0], dtype=torch.float64)
        many = batch["group_graded"].sum(1).clamp(min=1).double()
        return torch.where(self._shown(batch), 1.0, many)
