"""Liger: turn a trained decoder into a gated linear recurrence that reuses its key projection as the gate.

"Liger: Linearizing Large Language Models to Gated Recurrent Structures" (arXiv 2503.01496), its gated linear
attention with the hybrid "Liger attention". Of each head, with q, k, v [D] before rotary positions,

    g_t = log sigmoid(k_t) / 16,     S_t = diag(exp(g_t)) S_(t-1) + softmax(k_t)^T v_t,     S [D, D]
    o_t = softmax(q_t) S_t
    y_t = share * window_t + (1 - share) * o_t

where window_t is softmax attention, with rotary positions, over the last ``window`` tokens, itself among them
(the authors' kernel takes 64 or 65, as its version says). There are no new parameters: an adapter on the key
projection changes gate, recurrence and window alike. Sums are not divided by the keys' sum. Everything is
float32; a gate below exp(-5) counts as that.

Converted, the model computes something else than before; name it together with ``{ use = "lora", layers =
"*.q_proj" }`` and its kin (the authors: rank 8 on q, k and v, rate 1e-3, next-token loss), which restore it.
It is not folded: the artifact has the softmax model's weights in ``backbone/``, the wiring in ``adapter/``.
Text is then generated with a state of constant size, (D + 2 window) D numbers a head (``cache_bytes``).

In training the window's scores are computed as a whole [L, L]; the recurrence is linear in L. Not for tasks
that look up what stands far back, nor without training afterwards. Left out: the variants GSA and HGRN2.

Errors: an attention that is not a Llama's (other projections, norms of queries, windows, dropout, no rotary
positions); a prefix that is read from both sides; caches of another kind than DynamicCache.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.method import Surgery
from trainwright.core.settings import Count, Part
from trainwright.lm import linear_attention as linear
from trainwright.lm import mixing
from trainwright.lm.linear_attention import Memory, Mixer
from trainwright.lm.mixing import Heads, Seen

GATE = 16.0
"""By which the logarithm of a gate is divided."""


class Liger(Surgery):
    """Makes the attention of every block a gated recurrence beside a short window."""

    window: Count = 64
    """Tokens that softmax attention sees, the current one among them."""
    share: Part = 0.5
    """Of the window in what is mixed."""
    neutral: ClassVar[bool] = False
    folds: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {"window": 4}

    def claims(self, model: nn.Module) -> set[str]:
        linear.attentions(model, self.name)
        return {"knob:attention"}

    def operate(self, model: nn.Module, ctx: Context) -> None:
        linear.convert(model, self.name, lambda name, attention: Gated(self))

    def fold(self, model: nn.Module) -> None:
        """Takes the wiring out, which leaves the softmax model of these weights: another function."""
        linear.remove(model, Gated, self)

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """Writes no file: the wiring follows from the settings, and all weights belong to the plain model."""
        folder.mkdir(parents=True, exist_ok=True)

    def load_delta(self, model: nn.Module, folder: Path) -> None:
        """Nothing to read."""


class Gated(Mixer):
    """The recurrence of one attention."""

    settings: Liger

    def forward(self, heads: Heads, seen: Seen) -> Tensor:
        return self.mixed(mixing.softmax_window(heads, seen, self.settings.window),
                          self.over_time(heads, seen)[0])

    def mixed(self, window: Tensor, over_time: Tensor) -> Tensor:
        return self.settings.share * window + (1 - self.settings.share) * over_time

    def over_time(self, heads: Heads, seen: Seen) -> tuple[Tensor, Tensor]:
        q, k = heads.plain_q.softmax(-1), heads.plain_k.softmax(-1)
        return mixing.recurrence(q, k, heads.v, gate(heads.plain_k), seen)

    def remember(self, heads: Heads, seen: Seen, memory: Memory) -> None:
        linear.keep_window(heads, seen, self.settings.window, memory)
        memory.tensors["state"] = self.over_time(heads, seen)[1]

    def step(self, heads: Heads, memory: Memory) -> Tensor:
        keys, values, there = linear.next_window(heads, memory)
        scores = (heads.q @ keys.transpose(-1, -2) * heads.scaling).masked_fill(~there.mT, -torch.inf)
        new = heads.plain_k.softmax(-1).mT @ heads.v
        state = memory.tensors["state"] = gate(heads.plain_k).exp().mT * memory.tensors["state"] + new
        return self.mixed(scores.softmax(-1) @ values, heads.plain_q.softmax(-1) @ state)


def gate(k: Tensor) -> Tensor:
    """The logarithm of what is kept of the state, [.., D]."""
    return (F.logsigmoid(k) / GATE).clamp(min=mixing.STEEPEST)
