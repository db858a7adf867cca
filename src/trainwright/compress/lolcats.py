"""LoLCATs: replace softmax attention by a linear one that has learned to say the same, then repair with LoRA.

"LoLCATs: On Low-Rank Linearizing of Large Language Models" (arXiv 2410.10254). Of each head, with q, k, v [D]
after rotary positions and learned matrices W_q, W_k [D, features],

    phi(x) = [softmax(x W), softmax(-x W)], at least 1e-12
    a_nj   = gamma exp(q_n k_j / sqrt(D) - c_n)      j among the last ``window`` tokens, itself among them
             phi_q(q_n) phi_k(k_j)                   j before them
    y_n    = sum_j a_nj v_j / sum_j a_nj,            c_n = max of the window's scores, gamma = sigmoid(b)

with b [head] starting at -2.197. Two stages:

    1. attention transfer: this method alone, ``{ use = "lolcats" }``. All else is frozen, each layer hands on
       what softmax says, and the loss is 1000 times the mean squared difference of y from it, before the
       output projection, over layers: they learn independently. Rate 1e-2, no decay of weights.
    2. a stage that starts from that artifact, with ``lora`` on q, k, v and o (rank 8, alpha 16, rate 1e-4)
       and ``next_token``: there y is handed on, and the learned maps are frozen.

Evaluation and text always use y. It is not folded: the artifact has the softmax model's weights in
``backbone/`` and the maps in ``adapter/``. Text is generated with a state of constant size, (2 features
(D + 1) + 2 window D) numbers a head (``cache_bytes``). Everything is float32.

In training all a_nj of a row are computed [L, L]. Not without the first stage, and not for rows shorter than
the window, where nothing is linear. Left out: the terraced window and the schedule by plateaus.

Errors: an attention that is not a Llama's (other projections, norms of queries, windows, dropout, no rotary
positions); a prefix that is read from both sides; caches of another kind than DynamicCache.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.method import UNTRAINED, Batch, Objective, State, Surgery
from trainwright.core.settings import Count
from trainwright.lm import deltas, mixing
from trainwright.lm import linear_attention as linear
from trainwright.lm.layers import freeze, installed
from trainwright.lm.linear_attention import Memory, Mixer
from trainwright.lm.losses import body_states, field, positions, trained_tokens, way_of
from trainwright.lm.mixing import Heads, Seen

FILE = "lolcats.safetensors"
SCALE = 1000.0
"""Of the squared difference in the loss."""
LEAST = 1e-12
"""Of a feature."""
START = -2.197
"""Of b: the window begins with a tenth of the weight."""


class Lolcats(Surgery, Objective):
    """Linear attention with learned features, and the loss by which it learns from softmax."""

    features: Count = 64
    """Columns of a feature map; a key has twice as many features."""
    window: Count = 64
    """Tokens that softmax attention sees, the current one among them."""
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    neutral: ClassVar[bool] = False
    folds: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {"features": 4, "window": 4}
    expected_failures: ClassVar[dict[str, str]] = {
        "two_ranks_make_one_run": "Adam makes steps of gradients that are what rounding leaves of large sums"}

    def claims(self, model: nn.Module) -> set[str]:
        linear.attentions(model, self.name)
        return {"knob:attention"}

    def operate(self, model: nn.Module, ctx: Context) -> None:
        found = linear.attentions(model, self.name)
        freeze(model)
        for name, attention in found.items():
            draw = ctx.rng(f"{self.name}/{name}", at=0)
            linear.install(model, name, attention, Learned(self, attention, draw))

    def fold(self, model: nn.Module) -> None:
        """Takes the maps out, which leaves the softmax model of these weights: another function."""
        linear.remove(model, Learned, self)

    def learned(self, model: nn.Module) -> dict[str, Tensor]:
        return {f"{name}.{part}": tensor for name, mixer in installed(model, Learned, self).items()
                for part, tensor in mixer.named_parameters()}

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """``lolcats.safetensors``: of each attention ``map_q``, ``map_k`` [H, D, features] and ``balance``
        [H, 1, 1]."""
        deltas.write(self.learned(model), folder / FILE)

    def load_delta(self, model: nn.Module, folder: Path) -> None:
        """The maps stay as they are from now on, and everything else can be trained."""
        deltas.read(self.learned(model), folder / FILE)
        model.requires_grad_(True)
        for mixer in installed(model, Learned, self).values():
            mixer.requires_grad_(False)
            mixer.transferring = False

    # ---- attention transfer ------------------------------------------------------------------------------

    def count(self, batch: Batch) -> float:
        return trained_tokens(batch)

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        """Of each position [R, L] the squared difference, a mean over heads and layers; 0 where nothing is
        learned."""
        way_of(model)
        mixers = list(installed(model, Learned, self).values())
        for mixer in mixers:
            mixer.heard = []
        places = positions(model, batch)
        sharding.within(model, body_states, batch["input_ids"], places)
        errors = torch.stack([mixer.heard[0] for mixer in mixers if mixer.heard]).mean(0)
        for mixer in mixers:
            mixer.heard = None
        learned = field(batch, "targets") != UNTRAINED
        units = trained_tokens(batch)
        values = SCALE * errors.masked_fill(~learned, 0)
        ctx.note("lolcats/transfer", values.detach().sum() / max(1.0, units), weight=units)
        return values


class Learned(Mixer):
    """The feature maps of one attention."""

    settings: Lolcats

    def __init__(self, settings: Lolcats, attention: Any, draw: torch.Generator) -> None:
        super().__init__(settings)
        width = attention.head_dim
        shape = attention.q_proj.weight.shape[0] // width, width, settings.features
        bound = width**-0.5 * 3**0.5 * 2**0.5 / 6**0.5                # Kaiming's, with a slope of sqrt(5)
        drawn = [(torch.rand(shape, generator=draw) * 2 - 1) * bound for _ in range(2)]
        self.map_q, self.map_k = nn.Parameter(drawn[0]), nn.Parameter(drawn[1])
        self.balance = nn.Parameter(torch.full((shape[0], 1, 1), START))
        self.transferring = True
        self.heard: list[Tensor] | None = None

    def forward(self, heads: Heads, seen: Seen) -> Tensor:
        if not (self.transferring and self.training):
            return self.mixed(heads, seen)
        told = mixing.softmax(heads, seen)
        given = Heads(*(t.detach() for t in heads[:5]), heads.scaling)
        error = (self.mixed(given, seen) - told.detach()).square().mean((1, 3))
        if self.heard is not None:
            self.heard.append(error)
        return told

    def mixed(self, heads: Heads, seen: Seen) -> Tensor:
        """y [B, H, L, D]."""
        visible = seen.pairs()
        near = mixing.within(heads.q.shape[2], self.settings.window, heads.q.device)
        scores = mixing.scores(heads, visible & near)
        window = self.balance.sigmoid() * (scores - scores.amax(-1, keepdim=True).detach()).exp()
        far = self.phi(heads.q, self.map_q) @ self.phi(heads.k, self.map_k).mT
        weights = window + far.masked_fill(~(visible & ~near), 0)
        return weights @ heads.v / weights.sum(-1, keepdim=True)

    @staticmethod
    def phi(x: Tensor, matrix: Tensor) -> Tensor:
        z = x @ matrix
        return torch.cat([z.softmax(-1), (-z).softmax(-1)], dim=-1).clamp(min=LEAST)

    def remember(self, heads: Heads, seen: Seen, memory: Memory) -> None:
        length, size = heads.q.shape[2], self.settings.window - 1
        linear.keep_window(heads, seen, self.settings.window, memory)
        there = seen.there & (seen.document == seen.document[:, -1:])
        k = (self.phi(heads.k, self.map_k) * there[:, None, :, None])[:, :, :max(0, length - size)]
        memory.tensors["state"] = k.mT @ _with_one(heads.v)[:, :, :max(0, length - size)]

    def step(self, heads: Heads, memory: Memory) -> Tensor:
        keys, values, there = linear.next_window(heads, memory)
        scores = (heads.q @ keys.mT * heads.scaling).masked_fill(~there.mT, -torch.inf)
        window = self.balance.sigmoid() * (scores - scores.amax(-1, keepdim=True)).exp()
        whole = window @ _with_one(values) + self.phi(heads.q, self.map_q) @ memory.tensors["state"]
        oldest = self.phi(keys[:, :, :1], self.map_k) * there[:, :, :1]         # far from the next token
        memory.tensors["state"] = memory.tensors["state"] + oldest.mT @ _with_one(values[:, :, :1])
        return whole[..., :-1] / whole[..., -1:]


def _with_one(v: Tensor) -> Tensor:
    """Values with a 1 behind, whose sum is what divides."""
    return torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)
