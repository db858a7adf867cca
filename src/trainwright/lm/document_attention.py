"""Attention of packed rows at the cost of their documents, without a mask.

Of a row of L positions that holds documents of n_1, n_2, … positions, attention costs n_1² + n_2² + … instead
of L², and no mask [L, L] is made:

- on a CPU each document is a causal block of its own, by torch's flash kernel;
- on a GPU with half precision, torch's flash kernel for sequences of various lengths (``varlen_attn``);
- everywhere else, with dropout, and in rows of fewer than ``LONG`` positions, by a mask as before.

Importing this module puts ``attention`` and ``mask`` in the place of what transformers calls for ``sdpa``.
Whether a row may be taken apart is not looked up by a model's name: transformers hands ``mask`` the rule of
which position sees which, and only where that is exactly "the same document, and not later" is the answer a
``DocumentMask``. A window, chunks, a prefix, padding and attention in both directions are other rules and get
their mask. A ``DocumentMask`` *is* the mask for whoever looks at it (an attention of another kind, an adapter
that changes it): it makes itself then. ``attention`` alone reads the documents off it, where softmax(q k' ·
scale + mask) v without dropout is all that is asked.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import register_flop_formula
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    and_masks,
    causal_mask_function,
    packed_sequence_mask_function,
    remap_positions_for_packed_sequence,
    sdpa_mask,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

LONG = 1024
"""Positions of a row from which on it is taken apart."""
FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


# ---- the mask ----------------------------------------------------------------------------------------


class DocumentMask(Tensor):
    """The mask [R, 1, L, L] of packed rows, known by where documents begin; true where a position is seen.

    Args:
        edges: int32: where documents begin, counted through all rows, and at last R · L, which may stand
            there several times.
        most: no document is longer.
    """

    edges: Tensor
    most: int
    made: Tensor | None

    @staticmethod
    def __new__(cls, edges: Tensor, rows: int, length: int, most: int) -> DocumentMask:
        shape = rows, 1, length, length
        new = Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bool, device=edges.device)
        new.edges, new.most, new.made = edges, most, None
        return new

    def __init__(self, edges: Tensor, rows: int, length: int, most: int) -> None:
        """All is done where it is made."""

    def dense(self) -> Tensor:
        """The mask itself, made when it is first asked for."""
        if self.made is None:
            self.made = self._make()
        return self.made

    @torch.no_grad()
    def _make(self) -> Tensor:
        rows, _, length, _ = self.shape
        places = torch.arange(rows * length, dtype=self.edges.dtype, device=self.edges.device)
        number = torch.searchsorted(self.edges, places, right=True).view(rows, 1, length)
        earlier = torch.ones(length, length, dtype=torch.bool, device=places.device).tril()
        return (number[..., :, None] == number[..., None, :]) & earlier

    @property
    def changed(self) -> bool:
        """Whether somebody who looked at the mask has written into it."""
        return self.made is not None and not torch.equal(self.made, self._make())

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*tree_map(_dense, args), **tree_map(_dense, kwargs or {}))

    def __tensor_flatten__(self) -> tuple[list[str], tuple[int, int, int]]:
        return ["edges"], (self.shape[0], self.shape[2], self.most)

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Tensor], sizes: tuple[int, int, int], *unused: Any
    ) -> DocumentMask:
        return DocumentMask(inner["edges"], *sizes)


def _dense(one: Any) -> Any:
    return one.dense() if isinstance(one, DocumentMask) else one


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    use_vmap: bool = False,
    device: Any = "cpu",
    **unused: Any,
) -> Tensor | None:
    """As ``sdpa_mask``, called by transformers; a ``DocumentMask`` where the rows are long enough and causal
    within documents."""
    if q_length == kv_length >= LONG and not use_vmap and attention_mask is None:
        found = _document_mask(mask_function, q_length)
        if found is not None:
            return found
    return sdpa_mask(
        batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask, local_size,
        allow_is_causal_skip=allow_is_causal_skip, use_vmap=use_vmap, device=device,
        allow_is_bidirectional_skip=allow_is_bidirectional_skip)


@torch.compiler.disable
@torch.no_grad()
def _document_mask(rule: Any, length: int) -> DocumentMask | None:
    """The mask of a rule that says "of the same document, and not later"; None for any other, and on a device
    without a kernel for it. Compiled code leaves it out, as the number of documents is not known before."""
    parts = _held(rule, and_masks, "mask_functions")
    if parts is None or len(parts) != 2:
        return None
    number = _held(parts[0], packed_sequence_mask_function, "packed_sequence_mask")
    inner = _held(parts[1], remap_positions_for_packed_sequence, "mask_function")
    if inner is not causal_mask_function or number is None or isinstance(number, FakeTensor):
        return None
    if not _has_kernel(number.device):
        return None
    begins = F.pad(number[:, 1:] != number[:, :-1], (1, 0), value=True).flatten().nonzero()[:, 0]
    # few shapes and few numbers, so that little is compiled anew
    room = max(number.numel() // 64, 1 << len(begins).bit_length())
    edges = F.pad(begins, (0, room - len(begins)), value=number.numel()).to(torch.int32)
    most = length if edges.device.type == "cpu" else 1 << int(edges.diff().max() - 1).bit_length()
    return DocumentMask(edges, number.shape[0], length, min(most, length))


def _has_kernel(device: torch.device) -> bool:
    """Whether torch's flash kernel runs there and is allowed: where gradients are differentiated again, it is
    not."""
    able = device.type == "cpu" or (
        device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0))
    return able and torch.backends.cuda.flash_sdp_enabled()             # which speaks of CPUs, too


def _held(function: Any, maker: Callable[..., Any], name: str) -> Any:
    """What a function that ``maker`` made holds under a name; None where another made it."""
    code = getattr(function, "__code__", None)
    if code is None or code not in maker.__code__.co_consts:
        return None
    held = dict(zip(code.co_freevars, function.__closure__, strict=True))
    return held[name].cell_contents


# ---- the attention -----------------------------------------------------------------------------------


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    cache: Any = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As ``sdpa_attention_forward``, called by transformers with [R, heads, L, size] each, to
    [R, L, heads, size]; by documents where nothing else is asked for."""
    documents = attention_mask if isinstance(attention_mask, DocumentMask) else None
    if documents is not None:
        plain = not dropout and position_bias is None and cache is None and softcap is None
        way = _way(query, key, value, documents) if plain else None
        if way is not None:
            scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
            return way(*_in_one_type(query, key, value), documents, scale), None
        attention_mask = documents.dense()
    return _by_mask(module, query, key, value, attention_mask, others | {
        "dropout": dropout, "scaling": scaling, "is_causal": is_causal, "position_bias": position_bias,
        "cache": cache, "softcap": softcap})


def _by_mask(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
             given: dict[str, Any]) -> tuple[Tensor, None]:
    """As transformers does it, with all that it has handed over: a paged cache reads what is known to it
    alone."""
    out: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **given)
    return out


Way = Callable[[Tensor, Tensor, Tensor, DocumentMask, float], Tensor]


def _way(query: Tensor, key: Tensor, value: Tensor, documents: DocumentMask) -> Way | None:
    """How this device attends by documents; None where it cannot."""
    rows, _, length, size = query.shape
    fits = key.shape[::2] == value.shape[::2] == (rows, length) and key.shape[-1] == value.shape[-1] == size
    if not fits or documents.changed or documents.shape[::2] != (rows, length):
        return None
    kind = query.device.type
    if kind == "cpu":
        return _by_blocks
    half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    if half in (torch.float16, torch.bfloat16) and size <= 256 and size % 8 == 0:
        return _by_lengths
    return None


def _in_one_type(*given: Tensor) -> tuple[Tensor, ...]:
    """As autocast gives them to torch's own attention."""
    kind = given[0].device.type
    if torch.is_autocast_enabled(kind):
        return tuple(t.to(torch.get_autocast_dtype(kind)) for t in given)
    return given


def _by_blocks(query: Tensor, key: Tensor, value: Tensor, documents: DocumentMask, scale: float) -> Tensor:
    out: Tensor = blocks(query, key, value, documents.edges, scale)[0].transpose(1, 2)
    return out


def _by_lengths(query: Tensor, key: Tensor, value: Tensor, documents: DocumentMask, scale: float) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn
    flat = [t.transpose(1, 2).flatten(0, 1) for t in (query, key, value)]
    edges, most = documents.edges, documents.most
    out: Tensor = varlen_attn(*flat, edges, edges, most, most, scale=scale, window_size=(-1, 0),
                              enable_gqa=query.shape[1] != key.shape[1])
    return out.view(query.shape[0], query.shape[2], *out.shape[1:])


# ---- blocks on a CPU ---------------------------------------------------------------------------------


@torch.library.custom_op("trainwright::attention_by_blocks", mutates_args=(), device_types="cpu")
def blocks(query: Tensor, key: Tensor, value: Tensor, edges: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Causal attention within documents, and the logarithms of the sums of its exponentials [R, heads, L].

    As one operation it is compiled, counted and predicted whole; the fewer heads of keys and values are not
    repeated.
    """
    out, sums = _outputs(query)
    for row, part in _parts(edges, query.shape[2]):
        one = [t[row, :, part][None] for t in (query, key, value)]
        made, total = FLASH(*one, 0.0, True, scale=scale)
        out[row, :, part], sums[row, :, part] = made[0], total[0]
    return out, sums


@torch.library.custom_op("trainwright::attention_by_blocks_backward", mutates_args=(), device_types="cpu")
def blocks_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, sums: Tensor, edges: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``blocks``."""
    grads = _alike(query), _alike(key), _alike(value)
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    for row, part in _parts(edges, query.shape[2]):
        one = [t[row, :, part][None] for t in (grad, query, key, value, out, sums)]
        for whole, made in zip(grads, FLASH_BACKWARD(*one, 0.0, True, scale=scale), strict=True):
            whole[row, :, part] = made[0]
    return grads


def _parts(edges: Tensor, length: int) -> Iterator[tuple[int, slice]]:
    """The row of each document and its part of the row."""
    places: list[int] = edges.tolist()
    for begin, end in pairwise(places):
        if begin < end:
            row, first = divmod(begin, length)
            yield row, slice(first, first + end - begin)


def _alike(like: Tensor) -> Tensor:
    """Room for a tensor [R, heads, L, size], with the heads of a position next to each other, as the layers
    before and behind take them."""
    rows, heads, length, size = like.shape
    return like.new_empty(rows, length, heads, size).transpose(1, 2)


def _outputs(query: Tensor) -> tuple[Tensor, Tensor]:
    kind = torch.promote_types(query.dtype, torch.float32)
    rows, heads, length, _ = query.shape
    return _alike(query), query.new_empty(rows, length, heads, dtype=kind).transpose(1, 2)


@blocks.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, edges: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return _outputs(query)


@blocks_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _alike(query), _alike(key), _alike(value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, unused: Any) -> tuple[Tensor | None, ...]:
    query, key, value, edges, out, sums = ctx.saved_tensors
    return (*blocks_backward(grad, query, key, value, out, sums, edges, ctx.scale), None, None)


blocks.register_autograd(_backward, setup_context=_keep)


# ---- FLOPs, counted as torch counts those of attention: every document as a square ------------------


def _squares(edges: Tensor, rows: int, length: int) -> int:
    """The sum of the squares of the documents' lengths; at most that of whole rows where it is not known."""
    if isinstance(edges, FakeTensor) or edges.device.type == "meta":
        return rows * length**2
    return int(edges.long().diff().square().sum())


def _flops(heads: int, size: int, squares: int, products: int) -> int:
    return products * 2 * heads * size * squares


@register_flop_formula(torch.ops.trainwright.attention_by_blocks, get_raw=True)
def _(query: Tensor, key: Tensor, value: Tensor, edges: Tensor, *rest: Any, **unused: Any) -> int:
    rows, heads, length, size = query.shape
    return _flops(heads, size, _squares(edges, rows, length), 2)


@register_flop_formula(torch.ops.trainwright.attention_by_blocks_backward, get_raw=True)
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, sums: Tensor, edges: Tensor,
      *rest: Any, **unused: Any) -> int:
    rows, heads, length, size = query.shape
    return _flops(heads, size, _squares(edges, rows, length), 5)


ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] = mask
ALL_ATTENTION_FUNCTIONS["sdpa"] = attention
