"""Resize models in width and depth: what each dimension of a parameter counts, and maps of entries.

A space is what several dimensions have in common: the residual stream, the heads of queries, those of keys
and values, the inner units of the feed-forward layers. A map of a space (an index tensor) gives for each
entry of the large model the entry of the small one that it belongs to. All parameters share the maps:
there is one residual stream, and a layer must read what another wrote. Heads move as a whole, with their
group where queries share keys: their size stays the same, and so do the scale of attention and the rotary
angles.

A dimension that is written (outputs, biases, norms, embeddings) is copied to all members of an entry; one
that is read (marked ``<``: inputs of a layer) divides the weight among them, so that sums stay the same:
    expand:  W'[i, j] = W[g(i), g(j)] / |members of g(j)|        shrink:  mean over the members of i, sum over
                                                                          those of j
and shrink undoes expand. A head that is tied to the embeddings cannot be divided; then the norm in front
of it, which nothing else reads, counts as read.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainwright import families
from trainwright.core import sharding
from trainwright.core.errors import UserError
from trainwright.core.method import Tensors
from trainwright.lm.layers import block_names

Dims = tuple[str, ...]
Maps = Mapping[str, Tensor]
LLAMA: dict[str, Dims] = {
    "embed_tokens.weight": ("words", "residual"),
    "lm_head.weight": ("words", "<residual"),
    "norm.weight": ("residual",),
    "input_layernorm.weight": ("residual",),
    "post_attention_layernorm.weight": ("residual",),
    "q_norm.weight": ("head",),
    "k_norm.weight": ("head",),
    "q_proj.weight": ("query", "<residual"),
    "q_proj.bias": ("query",),
    "k_proj.weight": ("key", "<residual"),
    "k_proj.bias": ("key",),
    "v_proj.weight": ("key", "<residual"),
    "v_proj.bias": ("key",),
    "o_proj.weight": ("residual", "<query"),
    "o_proj.bias": ("residual",),
    "gate_proj.weight": ("inner", "<residual"),
    "gate_proj.bias": ("inner",),
    "up_proj.weight": ("inner", "<residual"),
    "up_proj.bias": ("inner",),
    "down_proj.weight": ("residual", "<inner"),
    "down_proj.bias": ("residual",),
}
GPT2: dict[str, Dims] = {
    "wte.weight": ("words", "residual"),
    "wpe.weight": ("places", "residual"),
    "lm_head.weight": ("words", "<residual"),
    "ln_1.weight": ("residual",),
    "ln_1.bias": ("residual",),
    "ln_2.weight": ("residual",),
    "ln_2.bias": ("residual",),
    "ln_f.weight": ("residual",),
    "ln_f.bias": ("residual",),
    "attn.c_attn.weight": ("<residual", "fused"),
    "attn.c_attn.bias": ("fused",),
    "attn.c_proj.weight": ("<query", "residual"),
    "attn.c_proj.bias": ("residual",),
    "mlp.c_fc.weight": ("<residual", "inner"),
    "mlp.c_fc.bias": ("inner",),
    "mlp.c_proj.weight": ("<inner", "residual"),
    "mlp.c_proj.bias": ("residual",),
}
LAYOUTS = {"llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA, "gpt2": GPT2}
"""By model type. Others scale embeddings, norms or logits by width, or arrange heads differently."""
WIDTHS = {
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "n_embd",
    "n_inner",
    "n_head",
}
"""Fields of a config that grow with the width."""
LAST_NORM = ("norm", "ln_f")


def dims_of(model: nn.Module) -> dict[str, Dims]:
    """The space of each dimension of each parameter, in the layer's own order.

    Raises:
        UserError: an unknown type of model or parameter (an adapter's), or a sharded one.
    """
    if model.config.model_type not in LAYOUTS:
        raise UserError(
            f"the width of a {type(model).__name__} cannot be changed; known are the models "
            f"{', '.join(LAYOUTS)}."
        )
    out = plain_dims(model)
    for name, parameter in model.named_parameters():
        if name not in out:
            raise UserError(
                f"the parameter {name} is none of a plain {model.config.model_type}: change its size before "
                "other surgeries, and in another stage."
            )
        if sharding.local(parameter) is not parameter:
            raise UserError(
                "the size of a model cannot be changed while it is sharded over several ranks: do it at the "
                "start of a stage."
            )
    return out


def plain_dims(model: nn.Module) -> dict[str, Dims]:
    """The same, without those parameters that a plain model of its type does not have, sharded or not."""
    layout = LAYOUTS[model.config.model_type]
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    out: dict[str, Dims] = {}
    for name, parameter in model.named_parameters():
        dims = next((d for suffix, d in layout.items() if f".{name}".endswith(f".{suffix}")), None)
        if dims is not None and len(dims) == parameter.ndim:
            out[name] = tuple(f"<{d}" for d in dims) if tied and name.split(".")[-2] in LAST_NORM else dims
    return out


def spaces(config: Any, residual: Tensor, groups: Tensor, inner: Tensor) -> dict[str, Tensor]:
    """The maps of all spaces, from those of the residual stream, of groups of heads with shared keys, and of
    inner units. ``config`` is the small model's."""
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", heads)
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    query = (groups[:, None] * (heads // shared * size) + torch.arange(heads // shared * size)).flatten()
    key = (groups[:, None] * size + torch.arange(size)).flatten()
    fused = torch.cat([query, key + heads * size, key + (heads + shared) * size])
    return {"residual": residual, "query": query, "key": key, "fused": fused, "inner": inner}


def inner_size(config: Any) -> int:
    """Inner units of a feed-forward layer."""
    return config.n_inner or 4 * config.n_embd if config.model_type == "gpt2" else config.intermediate_size


def groups_of(config: Any) -> int:
    """Number of groups of heads that share keys."""
    return getattr(config, "num_key_value_heads", config.num_attention_heads)


def resized(config: Any, width: float, order: Sequence[int], name: str) -> Any:
    """The config of a model ``width`` times as wide, whose layers come from those in ``order``.

    Raises:
        UserError: a size that is no whole number.
    """
    out = copy.deepcopy(config)
    for field in sorted(WIDTHS & set(config.to_dict())):
        size = getattr(config, field)
        if size is not None:
            if round(size * width) != size * width:
                raise UserError(
                    f"{name}: {field} = {size} times {width:g} is no whole number; take another width."
                )
            setattr(out, field, round(size * width))
    out.num_hidden_layers = len(order)
    if getattr(config, "layer_types", None):
        out.layer_types = [config.layer_types[i] for i in order]
    return out


def expand(t: Tensor, dims: Dims, maps: Maps) -> Tensor:
    """A parameter of the small model at the size of the large one."""
    for d, dim in enumerate(dims):
        if (index := maps.get(dim.lstrip("<"))) is not None:
            t = t.index_select(d, index.to(t.device))
            if dim.startswith("<"):
                t = t / along(index.bincount()[index].to(t), d, t.ndim)
    return t


def shrink(t: Tensor, dims: Dims, maps: Maps) -> Tensor:
    """A parameter of the large model at the size of the small one: sums where read, else means of members."""
    for d, dim in enumerate(dims):
        if (index := maps.get(dim.lstrip("<"))) is not None:
            members = index.bincount()
            shape = [*t.shape[:d], len(members), *t.shape[d + 1 :]]
            t = t.new_zeros(shape).index_add_(d, index.to(t.device), t)
            if not dim.startswith("<"):
                t = t / along(members.to(t), d, t.ndim)
    return t


def along(values: Tensor, d: int, ndim: int) -> Tensor:
    """A vector that broadcasts along the dimension ``d``."""
    return values.view([-1 if i == d else 1 for i in range(ndim)])


def blocks_name(model: nn.Module) -> str:
    """The name of the list of blocks."""
    return block_names(model)[0].rpartition(".")[0]


def layer_of(name: str, parent: str) -> tuple[int, str] | None:
    """A parameter's block number and the rest of its name; None outside the blocks."""
    if not name.startswith(f"{parent}."):
        return None
    number, _, rest = name.removeprefix(f"{parent}.").partition(".")
    return int(number), rest


def become(model: nn.Module, config: Any, weights: Tensors) -> None:
    """Give a model another config and these weights in place: it stays the object that others refer to."""
    where = f"a {config.model_type} of another size"
    before = next(model.parameters())
    other = families.skeleton(config, where) if before.is_meta else families.create(config, 0, where)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.data = parameter.data.to(weights[name].dtype)
            parameter.copy_(weights[name])
    other.to(before.device).train(model.training)
    if any("forward" in vars(block) for block in sharding.blocks(model)):
        sharding.checkpoint_blocks(other)
    other.generation_config = model.generation_config
    model.__dict__.update(other.__dict__)
