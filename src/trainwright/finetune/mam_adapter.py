"""MAM adapter: a short learned prefix in attention, a scaled parallel adapter beside the feed-forward layer.

"Towards a Unified View of Parameter-Efficient Transfer Learning" (arXiv 2110.04366): adapters, prefixes and
LoRA all add some Delta h to a hidden state h. With x the input of the sublayer, s the ``scale`` and r the
``bottleneck``,

    FFN:        h <- FFN(x) + s (W_up relu(W_down x + b_down) + b_up),   W_down [r, d], W_up [d, r],
    attention:  head = softmax(q [P_k; K]') [P_v; V]
                     = (1 - lambda(x)) attention(x) + lambda(x) softmax(q P_k') P_v,

where the gate lambda(x) is the prefix's share of the sums of exponentials. P_k and P_v [prefix, head size]
are learned for each key-value head, and every position of every document sees them. Queries are rotated by
their position before they meet P_k, which has none: the function is that of a cache that begins with P_k and
P_v, and packed documents see what they would see alone. Everything else is frozen. The adapter starts at zero
(W_down uniform in +-1/sqrt(d)). A prefix cannot: before it has learned anything it takes part of the
attention, most where little is visible yet. ``prefix = 0`` is the paper's scaled parallel adapter.

The paper's models have norms behind the sublayers; here x is the sublayer's input after the norm before it. P
is trained directly, or with ``hidden`` by a two-layer network that makes it of learned vectors, one network
for each attention; the authors' network is 800 wide, and all attentions share its first layer.

It cannot be folded in: relu and lambda depend on x. The artifact has the plain checkpoint in ``backbone/``
and what was learned in ``adapter/``; later stages, evaluation and ``generate`` load both, transformers alone
does not, and merging refuses it.

Do not use it where speed counts: the prefix keeps attention from its fastest kernels, and the adapter stays
for good.

Errors: a block whose attention or feed-forward layer is no module of its own, or that already has a prefix or
an adapter; attention that takes no mask, caps its scores or has sinks.
"""
from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Surgery
from trainwright.lm import deltas
from trainwright.lm.layers import LINEAR, Adapter, Carrier, block_names, compute_dtype, freeze, roles
from trainwright.lm.pruned import head_size

FILE = "mam_adapter.safetensors"
ATTENTION = "trainwright_prefix"
"""What attention with a prefix is called among transformers' ways of attention."""


class MamAdapter(Surgery):
    """Prefix tuning in attention and a scaled parallel adapter beside the feed-forward layer."""

    prefix: int = 30
    """Learned keys and values of each attention; 0: none."""
    bottleneck: int = 512
    """Inner width of the adapter beside each feed-forward layer; 0: none."""
    scale: float = 4.0
    """Factor of what the adapter adds."""
    dropout: float = 0.0
    """Share of the adapter's inner values that are dropped in training."""
    hidden: int = 0
    """Width of the network that makes the prefix; 0: it is trained itself."""
    neutral: ClassVar[bool] = False
    folds: ClassVar[bool] = False
    stands_alone: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"prefix": 3, "bottleneck": 4}

    def __post_init__(self) -> None:
        if min(self.prefix, self.bottleneck, self.hidden) < 0 or not self.prefix + self.bottleneck:
            raise ValueError(
                "prefix, bottleneck and hidden must be 0 or more, and one of the first two above 0, not "
                f"{self.prefix}, {self.bottleneck} and {self.hidden}."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and less than 1, not {self.dropout}.")

    def operate(self, model: nn.Module, ctx: Context) -> None:
        found, device = sublayers(model), next(model.parameters()).device
        if self.prefix:
            check_attention(model)
        freeze(model)
        wide = model.config.get_text_config().hidden_size
        for one in found:
            if self.bottleneck:
                rng = ctx.rng(f"mam_adapter/{one.ffn}", at=0)
                put_beside(model.get_submodule(one.ffn), ParallelAdapter(wide, self, rng, device))
            if self.prefix:
                attention, rng = (
                    model.get_submodule(one.attention),
                    ctx.rng(f"mam_adapter/{one.attention}", at=0),
                )
                put_before(attention, Prefix(attention.config, self, rng, device))

    def learned(self, model: nn.Module) -> dict[str, Tensor]:
        mine = {
            n: m
            for n, m in model.named_modules()
            if isinstance(m, (ParallelAdapter, Prefix)) and m.settings == self
        }
        return {f"{n}.{p}": t for n, m in mine.items() for p, t in m.named_parameters()}

    def fold(self, model: nn.Module) -> None:
        """Takes prefixes and adapters out: what is left is the model, as it was."""
        for module in list(model.modules()):
            parts = dict(module.named_children())
            if (adapter := parts.get("mam_adapter")) is not None and adapter.settings == self:
                take_away(module)
            if (prefix := parts.get("mam_prefix")) is not None and prefix.settings == self:
                take_out(module)

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """``mam_adapter.safetensors``: everything that is trained, under its name in the model."""
        deltas.write(self.learned(model), folder / FILE)

    def load_delta(self, model: nn.Module, folder: Path) -> None:
        deltas.read(self.learned(model), folder / FILE)


# ---- places ------------------------------------------------------------------------------------------------


class Sublayers(NamedTuple):
    """Names of the modules of a block."""

    attention: str
    ffn: str


def sublayers(model: nn.Module) -> list[Sublayers]:
    """Of each block the modules that are its attention and its feed-forward layer.

    Raises:
        UserError: a block in which one of the two is no module of its own, or has a prefix or an adapter
            already.
    """
    every = [n for n, m in model.named_modules() if type(m) in LINEAR or isinstance(m, Adapter)]
    role, found = roles(model, every), []
    decoder = next(n for n, m in model.named_modules() if m is model.get_decoder())  # type: ignore[operator]
    for block in (
        n for n in block_names(model) if n.startswith(f"{decoder}.")
    ):  # not those of a network beside it
        inside = [n for n in role if n.startswith(f"{block}.")]
        attention = {n.rpartition(".")[0] for n in inside if role[n] == "attention"}
        ffn = {f"{block}.{n[len(block) + 1:].split('.')[0]}" for n in inside if role[n] == "mlp"}
        if len(attention) != 1 or len(ffn) != 1 or ffn & set(every):
            raise UserError(
                f"mam_adapter: {block} of a {type(model).__name__} has no attention and feed-forward layer "
                "that are modules of their own."
            )
        one = Sublayers(attention.pop(), ffn.pop())
        found.append(one)
        if (
            isinstance(model.get_submodule(one.ffn), Parallel)
            or "mam_prefix" in model.get_submodule(one.attention)._modules
        ):
            raise UserError(f"mam_adapter: {block} has a prefix or an adapter already; name the method once.")
    return found


# ---- the feed-forward layer --------------------------------------------------------------------------------


class ParallelAdapter(Carrier):
    """s (W_up relu(W_down x + b_down) + b_up); W_down starts uniform in +-1/sqrt(wide), the rest at zero."""

    def __init__(self, wide: int, settings: MamAdapter, rng: torch.Generator, device: torch.device) -> None:
        super().__init__()
        self.settings, narrow = settings, settings.bottleneck
        start = torch.empty(narrow, wide).uniform_(-1 / math.sqrt(wide), 1 / math.sqrt(wide), generator=rng)
        self.down, self.down_bias = (
            nn.Parameter(start.to(device)),
            nn.Parameter(torch.zeros(narrow, device=device)),
        )
        self.up, self.up_bias = (
            nn.Parameter(torch.zeros(*shape, device=device)) for shape in ((wide, narrow), (wide,))
        )

    def forward(self, x: Tensor) -> Tensor:
        kind = compute_dtype(x)
        low = F.relu(F.linear(x.to(kind), self.down.to(kind), self.down_bias.to(kind)))
        low = F.dropout(low, self.settings.dropout, self.training)
        return F.linear(low, self.up.to(kind), self.up_bias.to(kind)) * self.settings.scale


class Parallel:
    """Mixed into the class of a feed-forward module: it adds what its adapter makes of the same input."""

    def forward(self, x: Tensor, *others: Any) -> Any:
        out, more = super().forward(x, *others), self.mam_adapter(x)  # type: ignore[misc, attr-defined]
        return (out[0] + more, *out[1:]) if isinstance(out, tuple) else out + more


def put_beside(module: nn.Module, adapter: ParallelAdapter) -> None:
    module.mam_adapter = adapter
    module.__class__ = type(f"Parallel{type(module).__name__}", (Parallel, type(module)), {})


def take_away(module: nn.Module) -> None:
    module.__class__ = type(module).__bases__[1]
    del module.mam_adapter


# ---- attention ---------------------------------------------------------------------------------------------


class Prefix(Carrier):
    """Keys and values [heads, prefix, head size] that every position of an attention sees: trained
    themselves, or made by a small network of numbers that are."""

    def __init__(self, config: Any, settings: MamAdapter, rng: torch.Generator, device: torch.device) -> None:
        super().__init__()
        self.settings, self.config, self.size = settings, config, head_size(config)
        self.heads = config.to_dict().get("num_key_value_heads") or config.num_attention_heads
        wide, hidden, length = 2 * self.heads * self.size, settings.hidden, settings.prefix
        if not hidden:
            self.vectors = nn.Parameter((0.02 * torch.randn(length, wide, generator=rng)).to(device))
            return
        bound = 1 / math.sqrt(hidden)
        self.vectors = nn.Parameter(torch.randn(length, hidden, generator=rng).to(device))
        shapes = {
            "inner": (hidden, hidden),
            "inner_bias": (hidden,),
            "outer": (wide, hidden),
            "outer_bias": (wide,),
        }
        for name, shape in shapes.items():
            start = torch.empty(shape).uniform_(-bound, bound, generator=rng)
            self.register_parameter(name, nn.Parameter(start.to(device)))

    def forward(self) -> Tensor:
        """[2, heads, prefix, head size], float32."""
        made = self.vectors
        if self.settings.hidden:
            made = F.linear(
                torch.tanh(F.linear(made, self.inner, self.inner_bias)), self.outer, self.outer_bias
            )
        return made.view(-1, 2, self.heads, self.size).permute(1, 2, 0, 3)


def prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attention [rows, heads, positions, head size] to a module's prefix and to what its mask allows."""
    if softcap is not None or unused.get("s_aux") is not None:
        raise UserError(
            "mam_adapter: attention with a cap on its scores, or with sinks, takes no prefix: set prefix = 0."
        )
    queries, seen = query.shape[2], key.shape[2]
    if attention_mask is None:  # causal; queries are the last of the positions seen
        attention_mask = torch.ones(1, 1, queries, seen, dtype=torch.bool, device=key.device).tril(
            seen - queries
        )
    prefix: Tensor = module.mam_prefix()  # type: ignore[operator]
    keys, values = (t.to(key.dtype).expand(len(key), -1, -1, -1) for t in prefix)
    shape = (*attention_mask.shape[:3], keys.shape[2])
    front = (
        attention_mask.new_ones(shape)
        if attention_mask.dtype == torch.bool
        else attention_mask.new_zeros(shape)
    )
    mask = torch.cat([front, attention_mask], -1)
    key, value = torch.cat([keys, key], 2), torch.cat([values, value], 2)
    return sdpa_attention_forward(
        module, query, key, value, mask, dropout=dropout, scaling=scaling, is_causal=False
    )


AttentionInterface.register(ATTENTION, prefix_attention)


def check_attention(model: nn.Module) -> None:
    """Raises UserError where a prefix could not be put before the model's keys and values."""
    if not families.is_pretrained(model) or not model._supports_attention_backend:
        raise UserError(
            f"mam_adapter: the attention of a {type(model).__name__} cannot be exchanged: set prefix = 0."
        )
    kind = model.config.get_text_config()._attn_implementation
    if kind not in ("sdpa", "eager"):
        raise UserError(
            "mam_adapter: a prefix needs attention with a mask ('sdpa' or 'eager'), and the model's is "
            f"{kind!r}."
        )


def put_before(module: nn.Module, prefix: Prefix) -> None:
    """Only the attention itself attends in another way; masks are made as before."""
    module.mam_prefix, module.config = prefix, copy.copy(prefix.config)
    module.config._attn_implementation = ATTENTION


def take_out(module: nn.Module) -> None:
    module.config = module.mam_prefix.config
    del module.mam_prefix
