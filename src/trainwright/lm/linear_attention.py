"""Linear attention in place of a decoder's softmax attention: what conversions share.

A converted attention keeps its module and its projections, under their names, so that adapters, globs and
checkpoints mean the same before and after; what mixes the tokens is a ``Mixer``, its child ``linear``. Text
is generated with a ``Memory`` for each layer, a state of constant size in the place of keys and values that
grow.

- ``attentions`` finds the modules that can be converted and proves on a few tokens what they compute;
  ``install`` and ``remove`` put mixers in and take them out.
- ``keep_window`` and ``next_window`` remember the last tokens.

How tokens are mixed stands in ``mixing.py``, whose letters for shapes are used here, too.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from trainwright.core.errors import UserError
from trainwright.lm.layers import Carrier, block_names
from trainwright.lm.mixing import Heads, Seen, seen_of, softmax

PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj"}
NAME = "linear"
"""Name of a mixer on its attention."""
ALIKE, ALIKE_IN_HALF = 1e-3, 3e-2
"""How far an attention may be from the softmax attention that it is taken for, as a part of its output, in
float32 and in shorter types."""


class Memory(CacheLayerMixin):  # type: ignore[misc]
    """What a converted attention remembers of the tokens before: tensors with rows first, whose sizes do not
    depend on how many tokens there were."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.length = 0
        self.tensors: dict[str, Tensor] = {}

    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise UserError("a linear attention's memory holds no keys and values of all tokens.")

    def update(self, key_states: Tensor, value_states: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        raise UserError("a linear attention's memory holds no keys and values of all tokens.")

    def reset(self) -> None:
        self.length, self.tensors = 0, {}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.tensors = {n: t[indices.to(t.device)] for n, t in self.tensors.items()}

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.tensors = {n: t.repeat_interleave(repeats, dim=0) for n, t in self.tensors.items()}

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise UserError("a linear attention cannot forget its last tokens: its state is a sum.")


class Mixer(Carrier):
    """Mixes tokens; derive from it what a conversion puts in the place of softmax attention."""

    def __init__(self, settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, heads: Heads, seen: Seen) -> Tensor:
        """What the output projection reads of whole rows: [B, H, L, D]."""
        raise NotImplementedError

    def remember(self, heads: Heads, seen: Seen, memory: Memory) -> None:
        """Fill a fresh memory with these tokens."""
        raise NotImplementedError

    def step(self, heads: Heads, memory: Memory) -> Tensor:
        """Of one more token: [B, H, 1, D]; it is remembered."""
        raise NotImplementedError


# ---- in and out ----------------------------------------------------------------------------------------


def attentions(model: nn.Module, who: str) -> dict[str, nn.Module]:
    """The attention of each block, by name.

    Raises:
        UserError: one is not a causal softmax attention over all tokens with rotary positions, between
            ``q_proj``, ``k_proj``, ``v_proj`` and ``o_proj``; or it was converted before.
    """
    found = {}
    for block in block_names(model):
        names = [
            n
            for n, m in model.get_submodule(block).named_children()
            if ("attn" in n or "attention" in n) and any(p.ndim > 1 for p in m.parameters())
        ]
        inside = set(model.get_submodule(f"{block}.{names[0]}")._modules) if names else set()
        if len(names) == 1 and NAME in inside:
            raise UserError(f"{who}: {block}.{names[0]} is a linear attention already.")
        if len(names) != 1 or inside != PROJECTIONS:
            raise UserError(
                f"{who}: {block} has no attention of {', '.join(sorted(PROJECTIONS))} and "
                "nothing else, as a Llama has: it cannot be made linear."
            )
        found[f"{block}.{names[0]}"] = model.get_submodule(f"{block}.{names[0]}")
    if not found:
        raise UserError(f"{who}: a {type(model).__name__} has no repeated blocks to make linear.")
    _check_config(model.config.get_text_config(), who)  # type: ignore[operator, union-attr]
    if not next(model.parameters()).is_meta:
        _prove(model, found, who)
    return found


def _check_config(config: Any, who: str) -> None:
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if kinds or window:
        raise UserError(
            f"{who}: the model's attention is not over all tokens "
            f"({', '.join(sorted(kinds)) or f'a window of {window}'}): it is not made linear."
        )
    if getattr(config, "attention_dropout", 0.0):
        raise UserError(
            f"{who}: the model drops attention in training (attention_dropout = "
            f"{config.attention_dropout}), which a sum over time cannot: set it to 0."
        )
    if config._attn_implementation not in ("sdpa", "eager"):
        raise UserError(
            f"{who}: the model computes attention by {config._attn_implementation}; load it with "
            "sdpa or eager."
        )


@torch.no_grad()
def _prove(model: Any, found: dict[str, nn.Module], who: str) -> None:
    """Compare each attention with the softmax attention that it is taken for."""
    rotary = getattr(model.get_decoder(), "rotary_emb", None)
    for name, attention in found.items():
        weight: Any = attention.get_submodule("q_proj").weight
        x = torch.arange(5 * weight.shape[1], device=weight.device).sin().view(1, 5, -1).to(weight.dtype)
        places = torch.arange(5, device=weight.device)[None]
        turned = rotary(x, places) if rotary is not None else None
        alike = turned is not None and turned[0].shape[-1] == attention.head_dim
        if alike:
            heads = projected(attention, x, turned)
            mine = joined(attention, softmax(heads, seen_of(None, places)).to(x.dtype))
            theirs = attention(hidden_states=x, position_embeddings=turned, attention_mask=None)[0]
            most = ALIKE if x.dtype == torch.float32 else ALIKE_IN_HALF
            alike = bool((mine - theirs).abs().max() <= most * theirs.abs().max())
        if not alike:
            raise UserError(
                f"{who}: {name} ({type(attention).__name__}) computes something else than "
                "softmax attention with rotary positions: it cannot be made linear."
            )


def install(model: nn.Module, name: str, attention: nn.Module, mixer: Mixer) -> None:
    """Have an attention mix by ``mixer``."""
    mixer.train(attention.training)
    attention.add_module(NAME, mixer.to(next(attention.parameters()).device))
    attention.forward = MethodType(_attend, attention)


def remove(model: nn.Module, kind: type[Mixer], settings: Any) -> None:
    """Take the mixers of a method out: what is left is softmax attention with the projections of now."""
    for module in list(model.modules()):
        mixer = module._modules.get(NAME)
        if isinstance(mixer, kind) and mixer.settings == settings:
            del module.forward
            delattr(module, NAME)


def _attend(
    attention: Any,
    hidden_states: Tensor,
    position_embeddings: Any = None,
    attention_mask: Tensor | None = None,
    past_key_values: Cache | None = None,
    position_ids: Tensor | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """The forward pass of a converted attention, called by transformers."""
    heads = projected(attention, hidden_states, position_embeddings)
    memory = None if past_key_values is None else _memory(past_key_values, attention.layer_idx)
    with torch.autocast(hidden_states.device.type, enabled=False):
        if memory is not None and memory.length:
            parts = [
                Heads(*(t[:, :, i : i + 1] for t in heads[:5]), heads.scaling)
                for i in range(heads.q.shape[2])
            ]
            mixed = torch.cat([attention.linear.step(part, memory) for part in parts], dim=2)
        else:
            seen = seen_of(attention_mask, position_ids, heads.q)
            mixed = attention.linear(heads, seen)
            if memory is not None:
                attention.linear.remember(heads, seen, memory)
    if memory is not None:
        memory.length += heads.q.shape[2]
    return joined(attention, mixed.to(hidden_states.dtype)), None


def _memory(cache: Cache, layer: int) -> Memory:
    """The layer's memory in a cache, made where there is none."""
    if not isinstance(cache, DynamicCache):
        raise UserError(
            f"a linear attention generates with a DynamicCache, not with a {type(cache).__name__}."
        )
    while len(cache.layers) <= layer:
        cache.layers.append(Memory())
    if not isinstance(cache.layers[layer], Memory):
        cache.layers[layer] = Memory()
    found: Memory = cache.layers[layer]
    return found


def projected(attention: Any, x: Tensor, turned: tuple[Tensor, Tensor]) -> Heads:
    """Queries, keys and values of hidden states [B, L, width], float32."""
    q, k, v = (
        getattr(attention, n)(x).float().unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for n in ("q_proj", "k_proj", "v_proj")
    )
    cos, sin = (t.float().unsqueeze(1) for t in turned)
    groups = q.shape[1] // k.shape[1]
    plain_k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
    return Heads(_turned(q, cos, sin), _turned(plain_k, cos, sin), v, q, plain_k, attention.scaling)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def joined(attention: Any, mixed: Tensor) -> Tensor:
    """The output projection of what was mixed: [B, L, width]."""
    out: Tensor = attention.o_proj(mixed.transpose(1, 2).flatten(2))
    return out


# ---- the last tokens, remembered -----------------------------------------------------------------------


def keep_window(heads: Heads, seen: Seen, window: int, memory: Memory) -> None:
    """Remember the last ``window`` - 1 tokens of each row's last document."""
    size = window - 1
    there = seen.there & (seen.document == seen.document[:, -1:])
    for name, tensor in (("keys", heads.k), ("values", heads.v), ("there", there[:, None, :, None])):
        short = max(0, size - tensor.shape[2])
        memory.tensors[name] = F.pad(tensor[:, :, max(0, tensor.shape[2] - size) :], (0, 0, short, 0)).clone()


def next_window(heads: Heads, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values [B, H, window, D] that one more token sees, and which of them are there [B, 1, window,
    1]; the token is remembered in the place of the oldest."""
    one = torch.ones(len(heads.q), 1, 1, 1, dtype=torch.bool, device=heads.q.device)
    whole = [
        torch.cat([memory.tensors[name], new], dim=2)
        for name, new in (("keys", heads.k), ("values", heads.v), ("there", one))
    ]
    for name, tensor in zip(("keys", "values", "there"), whole, strict=True):
        memory.tensors[name] = tensor[:, :, 1:].clone()
    return whole[0], whole[1], whole[2]


Made = Callable[[str, nn.Module], Mixer]
"""From the name of an attention and the module to its mixer."""


def convert(model: nn.Module, who: str, make: Made) -> None:
    """Put a mixer into the attention of every block."""
    for name, attention in attentions(model, who).items():
        install(model, name, attention, make(name, attention))
