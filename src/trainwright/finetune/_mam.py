"""A parallel adapter beside a feed-forward layer, and a learned prefix before the keys and values of attention."""
from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from trainwright.core.errors import UserError
from trainwright.families import models
from trainwright.lm.layers import LINEAR, Adapter, Carrier, block_names, roles
from trainwright.lm.pruned import head_size

if TYPE_CHECKING:
    from trainwright.finetune.mam_adapter import MamAdapter

ATTENTION = "trainwright_prefix"
"""What attention with a prefix is called among transformers' ways of attention."""


class Sublayers(NamedTuple):
    """Names of the modules of a block."""

    attention: str
    ffn: str


def sublayers(model: nn.Module) -> list[Sublayers]:
    """Of each block the modules that are its attention and its feed-forward layer.

    Raises:
        UserError: a block in which one of the two is no module of its own, or has a prefix or an adapter already.
    """
    every = [n for n, m in model.named_modules() if type(m) in LINEAR or isinstance(m, Adapter)]
    role, found = roles(model, every), []
    decoder = next(n for n, m in model.named_modules() if m is model.get_decoder())  # type: ignore[operator]
    for block in (n for n in block_names(model) if n.startswith(f"{decoder}.")):       # not those of a network beside it
        inside = [n for n in role if n.startswith(f"{block}.")]
        attention = {n.rpartition(".")[0] for n in inside if role[n] == "attention"}
        ffn = {f"{block}.{n[len(block) + 1:].split('.')[0]}" for n in inside if role[n] == "mlp"}
        if len(attention) != 1 or len(ffn) != 1 or ffn & set(every):
            raise UserError(f"mam_adapter: {block} of a {type(model).__name__} has no attention and feed-forward layer that are "
                            "modules of their own.")
        one = Sublayers(attention.pop(), ffn.pop())
        found.append(one)
        if isinstance(model.get_submodule(one.ffn), Parallel) or "mam_prefix" in model.get_submodule(one.attention)._modules:
            raise UserError(f"mam_adapter: {block} has a prefix or an adapter already; name the method once.")
    return found


# ---- the feed-forward layer -----------------------------------------------------------------------------------------


class ParallelAdapter(Carrier):
    """s (W_up relu(W_down x + b_down) + b_up); W_down uniform in +-1/sqrt(wide), all else zero at the start."""

    def __init__(self, wide: int, settings: MamAdapter, rng: torch.Generator, device: torch.device) -> None:
        super().__init__()
        self.settings, narrow = settings, settings.bottleneck
        start = torch.empty(narrow, wide).uniform_(-1 / math.sqrt(wide), 1 / math.sqrt(wide), generator=rng)
        self.down, self.down_bias = nn.Parameter(start.to(device)), nn.Parameter(torch.zeros(narrow, device=device))
        self.up, self.up_bias = (nn.Parameter(torch.zeros(*shape, device=device)) for shape in ((wide, narrow), (wide,)))

    def forward(self, x: Tensor) -> Tensor:
        kind = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
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


# ---- attention ------------------------------------------------------------------------------------------------------


class Prefix(Carrier):
    """Keys and values [heads, prefix, head size] that every position of an attention sees: trained themselves, or made by a small
    network of numbers that are."""

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
        shapes = {"inner": (hidden, hidden), "inner_bias": (hidden,), "outer": (wide, hidden), "outer_bias": (wide,)}
        for name, shape in shapes.items():
            start = torch.empty(shape).uniform_(-bound, bound, generator=rng)
            self.register_parameter(name, nn.Parameter(start.to(device)))

    def forward(self) -> Tensor:
        """[2, heads, prefix, head size], float32."""
        made = self.vectors
        if self.settings.hidden:
            made = F.linear(torch.tanh(F.linear(made, self.inner, self.inner_bias)), self.outer, self.outer_bias)
        return made.view(-1, 2, self.heads, self.size).permute(1, 2, 0, 3)


def prefix_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
                     dropout: float = 0.0, scaling: float | None = None, softcap: float | None = None,
                     **unused: Any) -> tuple[Tensor, None]:
    """Attention [rows, heads, positions, head size] to a module's prefix and to what its mask lets through."""
    if softcap is not None or unused.get("s_aux") is not None:
        raise UserError("mam_adapter: attention with a cap on its scores, or with sinks, takes no prefix: set prefix = 0.")
    queries, seen = query.shape[2], key.shape[2]
    if attention_mask is None:                                    # causal; queries are the last of the positions seen
        attention_mask = torch.ones(1, 1, queries, seen, dtype=torch.bool, device=key.device).tril(seen - queries)
    keys, values = (t.to(key.dtype).expand(len(key), -1, -1, -1) for t in module.mam_prefix())  # type: ignore[operator]
    shape = (*attention_mask.shape[:3], keys.shape[2])
    front = attention_mask.new_ones(shape) if attention_mask.dtype == torch.bool else attention_mask.new_zeros(shape)
    mask = torch.cat([front, attention_mask], -1)
    key, value = torch.cat([keys, key], 2), torch.cat([values, value], 2)
    return sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scaling, is_causal=False)


AttentionInterface.register(ATTENTION, prefix_attention)


def check_attention(model: nn.Module) -> None:
    """Raises UserError where a prefix could not be put before the model's keys and values."""
    if not models.is_pretrained(model) or not model._supports_attention_backend:
        raise UserError(f"mam_adapter: the attention of a {type(model).__name__} cannot be exchanged: set prefix = 0.")
    kind = model.config.get_text_config()._attn_implementation
    if kind not in ("sdpa", "eager"):
        raise UserError(f"mam_adapter: a prefix needs attention with a mask ('sdpa' or 'eager'), and the model's is {kind!r}.")


def put_before(module: nn.Module, prefix: Prefix) -> None:
    """The attention alone is told of another way to attend; masks are made as before."""
    module.mam_prefix, module.config = prefix, copy.copy(prefix.config)
    module.config._attn_implementation = ATTENTION


def take_out(module: nn.Module) -> None:
    module.config = module.mam_prefix.config
    del module.mam_prefix
