"""Which parts of a text a denoiser hides: counts, random cuts, and the longest text whose example fits into its place."""
from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby, pairwise
from typing import NamedTuple

import torch
from torch import nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch
from trainwright.lm.encoder_decoder import has_encoder
from trainwright.lm.losses import evaluating, token_losses


class Text(NamedTuple):
    """A document's part of a row: where it begins, its number in the row, the positions that it has, and its tokens."""

    at: int
    number: int
    room: int
    tokens: list[int]


def texts(batch: Batch, row: int) -> Iterator[Text]:
    """The texts of a row. The target of the last position is the token behind it, where it is known."""
    ids, targets, documents = (batch[n][row].tolist() for n in ("input_ids", "targets", "document"))
    for number, group in groupby(range(len(ids)), key=documents.__getitem__):
        places = list(group)
        at, end = places[0], places[-1] + 1
        if number >= 0:
            yield Text(at, number, end - at, ids[at:end] + [t for t in targets[end - 1:end] if t != UNTRAINED])


def counts(size: int, mean: float, rate: float) -> tuple[int, int]:
    """Tokens to hide of ``size``, and the spans they are in: at least one, and no more than can be apart."""
    hidden = min(max(round(size * rate), 1), size - 1)
    return hidden, min(max(round(hidden / mean), 1), hidden, size - hidden)


@lru_cache(maxsize=4096)
def longest(have: int, room: int, mean: float, rate: float) -> int:
    """Tokens of the longest text, of those at hand, whose example fits into ``room`` positions; 0 where none of two does.

    Of L tokens in n spans an example has L + 2 n and two more (mode and end), and reads all of them but the last.
    """
    return next((size for size in range(min(have, room - 3), 1, -1) if size + 2 * counts(size, mean, rate)[1] + 1 <= room), 0)


def parts(total: int, n: int, rng: torch.Generator) -> list[int]:
    """``total`` cut into ``n`` parts of at least 1, all ways equally likely."""
    cuts = torch.randperm(total - 1, generator=rng)[:n - 1].sort().values + 1
    edges = [0, *cuts.tolist(), total]
    return [b - a for a, b in pairwise(edges)]


def stretch(tokens: list[int], size: int, rng: torch.Generator) -> list[int]:
    """``size`` tokens in a row, from anywhere."""
    at = int(torch.randint(len(tokens) - size + 1, (), generator=rng))
    return tokens[at:at + size]


def ending(size: int, rate: float, rng: torch.Generator) -> int:
    """How many tokens at the end of ``size`` are hidden: ``rate`` of them in the mean, all lengths around it equally likely."""
    mean, _ = counts(size, 1.0, rate)
    spread = min(mean, size - mean) - 1
    return mean - spread + int(torch.randint(2 * spread + 1, (), generator=rng))


def check_both_ways(model: nn.Module, ctx: Context) -> None:
    """That a model sees what stands behind a position in the prefix, and nothing else behind it; an encoder does.

    Raises:
        UserError: it does not.
    """
    if has_encoder(model):
        return
    ids = torch.arange(8).repeat(3, 1)
    ids[1, 3], ids[2, 6] = 0, 0                                            # the last of the prefix, and one behind it
    batch = {"input_ids": ids, "targets": torch.full_like(ids, UNTRAINED), "position_ids": torch.arange(8).repeat(3, 1)}
    batch["targets"][:, 0], batch["prefix"] = 1, torch.arange(8).repeat(3, 1) < 4
    with torch.no_grad(), evaluating(model), torch.autocast(ctx.device.type, enabled=False):
        losses = token_losses(model, {n: t.to(ctx.device) for n, t in batch.items()}, ctx)[:, 0]
    inside, behind = (losses[1:] - losses[0]).abs().tolist()
    if not inside > 10 * behind:
        raise UserError(f"the attention of a {type(model).__name__} cannot be opened to what stands behind a token: set "
                        "bidirectional = false.")
