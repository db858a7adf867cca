"""What methods share that learn from the batch of a ``rollout``: its rows, how far sampling and training are
apart, advantages, and the mask of a clip.

In the first step on a rollout the model has not moved, so that pi and old, the log-probabilities of training
and of sampling, should agree. Noted there of the answers' tokens, in nats, with d = old - pi:

    mismatch/v1       mean of d         the divergence of the two, if the tokens are draws from the first
    mismatch/v2       mean of d^2 / 2   the same to second order, and never below 0
    mismatch/largest  max of |d|        with micro-batches, the mean of their largest
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor

from trainwright.core import sharding
from trainwright.core.context import Context, View
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch, Stop

SPREAD = 1e-4
"""What is added to the standard deviation of a group's rewards."""
FARTHEST = 20.0
"""Of a log-ratio, before it becomes a ratio."""
NOTHING = 1e-9
"""Units of a micro-batch without a graded answer: the loss is 0, and the stage goes on."""
SMALL = {"task": {"use": "matches", "pattern": "[aeiou]", "whole": False}, "group": 4, "prompts": 4,
         "epochs": 2, "new_tokens": 4, "length": 32, "domains": ["chat"]}
"""Settings of a rollout beside which methods that learn from one are tried."""
MOST_MISMATCH = 0.005
"""Of ``mismatch/v2``: log-probabilities that are a tenth of a nat apart."""
READS = ("logp", "reward", "group", "group_rewards", "group_graded", "group_tokens", "temperature")
"""What ``rollout`` adds to the rows of a batch."""
ROWS = ("input_ids", "targets", "position_ids", "logp")
T, U = TypeVar("T"), TypeVar("U")


def need(who: str, batch: Batch, names: Sequence[str] = READS, data: str = "rollout") -> None:
    """Refuse a batch that is not of the data method ``data``."""
    if missing := [name for name in names if name not in batch]:
        raise UserError(f"{who}: the batch has no {missing[0]}: take {{ use = \"{data}\" }} as the data "
                        "method.")
    if "hinted" in batch and data == "rollout":
        raise UserError(f"{who}: some answers were drawn with a hint that is not in the batch: take {{ use = "
                        "\"rollout\" } as the data method, or guide_rlvr as the loss.")


def trimmed(batch: Batch) -> Batch:
    """The rows as long as the longest of them."""
    width = max(1, int(batch["attention_mask"].sum(1).max()))
    return {name: batch[name][:, :width] for name in ROWS} | {"packed": False}


def advantages(batch: Batch, scale: Literal["group", "none"]) -> Tensor:
    """How much better than its group each answer is [R], by the standard deviation of that unless ``scale``
    is none; 0 where it is the only one with a grade."""
    there, given = batch["group_graded"].float(), batch["group_rewards"]
    many = there.sum(1)
    mean = (given * there).sum(1) / many.clamp(min=1)
    better: Tensor = batch["reward"] - mean
    if scale == "none":
        return better
    squares = ((given - mean[:, None]).square() * there).sum(1)
    return better / ((squares / (many - 1).clamp(min=1)).sqrt() + SPREAD)


def averaged(moved: Tensor, learned: Tensor) -> Tensor:
    """Of log-ratios of tokens [R, L] their mean over each answer [R, 1]."""
    return moved.sum(1, keepdim=True) / learned.sum(1, keepdim=True).clamp(min=1)


def ratio_of(moved: Tensor) -> Tensor:
    """The ratio that a log-ratio is of, which no step makes infinite."""
    return moved.clamp(-FARTHEST, FARTHEST).exp()


def stops(ratio: Tensor, better: Tensor, low: float, high: float) -> Tensor:
    """Where the clip of PPO leaves no gradient: a ratio that has gone the way of its advantage far enough."""
    return ((ratio > 1 + high) & (better > 0)) | ((ratio < 1 - low) & (better < 0))


@torch.no_grad()
def note_mismatch(moved: Tensor, learned: Tensor, batch: Batch, ctx: Context) -> None:
    """Of the first step on a rollout, given log-ratios pi - old of tokens and which are learned."""
    if not batch["fresh"] or not (many := int(learned.sum())):
        return
    apart = moved[learned]
    ctx.note("mismatch/v1", -apart.mean(), weight=many)
    ctx.note("mismatch/v2", apart.square().mean() / 2, weight=many)
    ctx.note("mismatch/largest", apart.abs().max())


def mismatched(view: View, most: float) -> Iterable[Stop]:
    """A stop as failed where sampling and training were too far apart in the last step."""
    found = view.notes.get("mismatch/v2", 0.0)
    if not found <= most:
        yield Stop("in training the model gives the tokens that it has sampled other log-probabilities: half "
                   f"their mean squared difference is {found:.3g} (most_mismatch = {most:g}). Does it have "
                   "dropout, or another precision?", failed=True)


def parted(things: Sequence[T], work: Callable[[Sequence[T]], Sequence[U]], ctx: Context) -> list[U]:
    """What ``work`` makes of each thing: every rank works on its part, as many as the others, and has all."""
    if not things:
        return []
    each = -(-len(things) // sharding.world())
    places = range(each * sharding.world())[ctx.rows(each * sharding.world())]
    mine = work([things[i % len(things)] for i in places])
    return [one for part in sharding.gather(list(mine)) for one in part][:len(things)]


def learned_of(rows: Batch) -> Tensor:
    """Which tokens of answers are learned, bool [R, L]."""
    return rows["targets"] != UNTRAINED  # type: ignore[no-any-return]
