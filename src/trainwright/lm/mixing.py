"""How attention mixes tokens: by a softmax over all of them, over the last ones, or by a sum over time.

``softmax`` and ``softmax_window`` are softmax attention over all tokens before, and over the last of them;
``recurrence`` is the gated sum of outer products over time, in chunks. ``seen_of`` reads off a mask or off
positions which tokens are of one document, and which are padding.

Shapes: B rows, H query heads, L tokens, D entries of a head, F features. Documents of a row are kept apart.
"""
from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trainwright.core.errors import UserError

CHUNK = 16
"""Tokens of a chunk of ``recurrence``."""
STEEPEST = -5.0
"""Least logarithm of a decay: e to sixteen times its negative is still a float32."""


class Heads(NamedTuple):
    """What an attention reads, by heads: [B, H, L, D] each, keys and values repeated for grouped queries."""

    q: Tensor
    k: Tensor
    v: Tensor
    plain_q: Tensor
    """Before rotary positions."""
    plain_k: Tensor
    scaling: float


class Seen(NamedTuple):
    """Which token is of which document, int64 [B, L], and which are no padding, bool [B, L]."""

    document: Tensor
    there: Tensor

    def pairs(self) -> Tensor:
        """Which query [L] may see which key [L], bool [B, 1, L, L]; padding sees itself, so that nothing is
        undefined."""
        same = self.document[:, :, None] == self.document[:, None, :]
        length = same.shape[-1]
        past = torch.ones(length, length, dtype=torch.bool, device=same.device).tril()
        alone = torch.eye(length, dtype=torch.bool, device=same.device)
        return ((same & self.there[:, None, :] & past) | alone)[:, None]


def seen_of(mask: Tensor | None, places: Tensor | None, like: Tensor | None = None) -> Seen:
    """Documents and padding, of the mask that transformers has made ([B, 1, L, L], bool or added to scores),
    or of positions where it has made none.

    Raises:
        UserError: a token may see a later one.
    """
    if mask is None and places is None:
        assert like is not None
        document = like.new_zeros((len(like), like.shape[2]), dtype=torch.int64)
        return Seen(document, document == 0)
    if mask is None:
        assert places is not None
        begins = F.pad(places[:, 1:] != places[:, :-1] + 1, (1, 0)).long().cumsum(1)
        document = begins.expand(len(like) if like is not None else len(places), -1)
        return Seen(document, torch.ones_like(document, dtype=torch.bool))
    visible = (mask if mask.dtype == torch.bool else mask == 0)[:, 0]
    if not torch.compiler.is_compiling() and bool(visible.triu(1).any()):
        raise UserError(
            "a linear attention reads from left to right alone, and this batch has a prefix that "
            "is read from both sides."
        )
    return Seen(visible.int().argmax(-1), visible.diagonal(dim1=1, dim2=2))


def softmax(heads: Heads, seen: Seen) -> Tensor:
    """Softmax attention over all tokens before: [B, H, L, D]."""
    return scores(heads, seen.pairs()).softmax(-1) @ heads.v


def scores(heads: Heads, visible: Tensor) -> Tensor:
    """q k / sqrt(D) [B, H, L, L], minus infinity where a key is not visible."""
    return ((heads.q @ heads.k.transpose(-1, -2)) * heads.scaling).masked_fill(~visible, -torch.inf)


def within(length: int, window: int, device: torch.device) -> Tensor:
    """Which query is less than ``window`` tokens behind which key, bool [L, L]; itself counts."""
    place = torch.arange(length, device=device)
    return (place[:, None] - place[None, :]) < window


def softmax_window(heads: Heads, seen: Seen, window: int) -> Tensor:
    """Softmax attention over the last ``window`` tokens, itself among them."""
    near = within(heads.q.shape[2], window, heads.q.device)
    return scores(heads, seen.pairs() & near).softmax(-1) @ heads.v


def recurrence(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
    """S_t = diag(exp(decay_t)) S_(t-1) + k_t^T v_t from 0 at each document's start, and o_t = q_t S_t.

    Args:
        q, k, decay: [B, H, L, F] float32, ``decay`` from STEEPEST to 0.
        v: [B, H, L, D] float32; padding is left out.

    Returns:
        o [B, H, L, D], and the last S [B, H, F, D].
    """
    length, more = q.shape[2], -q.shape[2] % CHUNK
    v = v * seen.there[:, None, :, None]
    q, k, v, decay = (F.pad(t, (0, 0, 0, more)).unflatten(2, (-1, CHUNK)) for t in (q, k, v, decay))
    document = torch.cat([seen.document, seen.document[:, -1:].expand(-1, more)], 1).unflatten(1, (-1, CHUNK))
    sums = decay.cumsum(3)
    scaled = q * sums.exp()
    past = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=q.device).tril()
    same = (document[..., :, None] == document[..., None, :]) & past
    inner = (scaled @ (k * (-sums).exp()).transpose(-1, -2)).masked_fill(~same[:, None], 0) @ v
    last = document[..., -1:]
    left = (k * (sums[..., -1:, :] - sums).exp()) * (document == last)[:, None, ..., None]
    added, kept = left.transpose(-1, -2) @ v, sums[..., -1, :].exp()[..., None]
    state, out = torch.zeros_like(added[:, :, 0]), []
    for n in range(q.shape[2]):
        before = last[:, n - 1] if n else document[:, 0, :1]
        goes_on = (document[:, n] == before)[:, None, :, None]
        out.append(inner[:, :, n] + (scaled[:, :, n] @ state) * goes_on)
        state = kept[:, :, n] * state * (last[:, n] == before)[:, None, :, None] + added[:, :, n]
    return torch.cat(out, dim=2)[:, :, :length], state
