"""A smaller decoder of the same kind, and its weights cut out of the large one's.

One set of hidden dimensions is kept from the first block to the last: all blocks write to and read from one
stream. What is kept of the neurons inside may differ from block to block.
"""
from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.tokens import open_corpus
from trainwright.lm.layers import LINEAR, as_linear_weight, in_out, roles
from trainwright.lm.losses import evaluating, token_losses, trained_tokens
from trainwright.lm.rows import Piece, fill

SIZES = (
    "hidden_size",
    "intermediate_size",
    "head_dim",
    "rotary_dim",
    "ffn_dim",
    "n_inner",
    "word_embed_proj_dim",
)
"""Fields of a config that are divided, as far as it has them."""
RANDOM = "set start = \"random\""
LONGEST = 128
"""Tokens of a document that count for importance: its last ones, where an answer stands."""
Pick = Callable[[Tensor], Tensor]
"""What is kept of the worth of each entry of a parameter."""


def small_config(config: Any, reduction: int, layers: Iterable[int]) -> Any:
    """The config of a decoder of the same kind, its widths divided, with these layers only and no vocabulary
    to speak of.

    Raises:
        UserError: a width that does not divide.
    """
    small, layers = copy.deepcopy(config), list(layers)
    fields = config.to_dict()
    for field in (config.attribute_map.get(name, name) for name in SIZES):
        if isinstance(fields.get(field), int):
            if fields[field] % reduction:
                raise UserError(
                    f"reduction = {reduction} does not divide the model's {field} of {fields[field]}."
                )
            setattr(small, field, fields[field] // reduction)
    heads, pair = head_size(config), 2 * reduction if rotary(config) else reduction
    if heads % pair:
        raise UserError(
            f"reduction = {reduction} cuts heads of {heads} dimensions unevenly: they must divide by {pair}."
        )
    small.num_hidden_layers = len(layers)
    if fields.get("layer_types"):
        small.layer_types = [config.layer_types[i] for i in layers]
    small.vocab_size, small.pad_token_id = 1, None
    return small


def head_size(config: Any) -> int:
    """Dimensions of an attention head."""
    return config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads


def rotary(config: Any) -> bool:
    """Whether positions turn pairs of dimensions of each head."""
    return any(name in config.to_dict() for name in ("rope_parameters", "rope_theta", "rotary_dim"))


def kept_of_head(config: Any, reduction: int, worth: Tensor | None = None) -> Tensor:
    """The dimensions of a head that are worth most, given what each is worth [head size]; else evenly spaced
    ones. Rotary pairs stay pairs; evenly spaced, they have the angles of a head of that size."""
    size, fields = head_size(config), config.to_dict()
    share = (
        (fields.get("rope_parameters") or {}).get("partial_rotary_factor")
        or fields.get("partial_rotary_factor")
        or 1.0
    )
    half = int(size * share) // 2 if rotary(config) else 0
    pairs, rest = torch.arange(0, half, reduction), torch.arange(2 * half, size, reduction)
    if worth is not None:
        turned = worth[:half] + worth[half : 2 * half]
        pairs = turned.topk(len(pairs)).indices.sort().values
        rest = 2 * half + worth[2 * half :].topk(len(rest)).indices.sort().values
    return torch.cat([pairs, half + pairs, rest])


def angles(decoder: nn.Module) -> Tensor | None:
    """The rotary frequencies of a decoder whose heads all turn alike and always so, else None."""
    found = [m for m in decoder.modules() if "inv_freq" in m._buffers]
    fixed = [m for m in found if getattr(m, "rope_type", "default") not in ("dynamic", "longrope")]
    return found[0].inv_freq if len(found) == len(fixed) == 1 else None


# ---- what weights are worth --------------------------------------------------------------------------------


def importance(model: nn.Module, samples: int, reduction: int, ctx: Context) -> dict[str, Tensor]:
    """What those parameters are worth, by name, that decide what is kept: the embeddings, summed over tokens
    [hidden], then the layers that make queries, keys, values and neurons, in the hidden dimensions alone that
    are kept [rows, kept].

    An entry is worth the sum of its squared gradients over documents of the stage's corpus, one at a time
    (Fisher information); without a corpus, or samples, its size. Neither gradients nor sums of the whole
    model are ever there at once: that would take more memory than training beside the model does.
    """
    measure = partial(_fisher, samples=samples, ctx=ctx) if samples and ctx.inputs.get("data") else _sizes
    names = {id(p): n for n, p in model.named_parameters()}
    table = names[id(model.get_input_embeddings().weight)]  # type: ignore[operator]
    found = measure(model, {table: partial(torch.sum, dim=0)})
    makers = {names[id(m.weight)]: m for b in sharding.blocks(model) for part in parts(b).values()
              for m in map(part.__getitem__, readers_of(part, len(found[table])))}
    hidden = largest(found[table], reduction)
    return found | measure(
        model, {n: partial(_columns, hidden, type(m) is Conv1D) for n, m in makers.items()}
    )


def _columns(hidden: Tensor, transposed: bool, worth: Tensor) -> Tensor:
    return (worth.T if transposed else worth)[:, hidden.to(worth.device)]


def _sizes(model: nn.Module, kept: dict[str, Pick]) -> dict[str, Tensor]:
    return {n: pick(model.get_parameter(n).detach().abs()) for n, pick in kept.items()}


def _fisher(model: nn.Module, kept: dict[str, Pick], samples: int, ctx: Context) -> dict[str, Tensor]:
    corpus, seen, device = open_corpus(ctx.path("data")), 0.0, next(model.parameters()).device
    rows = corpus.select("train")
    chosen = torch.randperm(len(rows), generator=ctx.rng("lst/samples", at=0))[:samples].tolist()
    trained = [p for p in model.parameters() if p.requires_grad]
    model.requires_grad_(False)
    parameters = {n: model.get_parameter(n).requires_grad_() for n in kept}
    total = {n: pick(torch.zeros_like(parameters[n])).float() for n, pick in kept.items()}
    hooks = [
        p.register_post_accumulate_grad_hook(partial(_squared, total[n], kept[n]))
        for n, p in parameters.items()
    ]
    for i in chosen:
        most = int(rows.length[i]) - 1
        size = max(0, min(most, LONGEST))
        piece = Piece(int(rows.shard[i]), int(rows.offset[i]) + most - size, size)
        batch = fill(corpus, [(int(rows.domain[i]), [piece])], size)
        batch = {n: t.to(device) if isinstance(t, Tensor) else t for n, t in batch.items()} | {
            "packed": False
        }
        tokens = trained_tokens(batch)
        seen += tokens
        if tokens:
            with evaluating(model), torch.enable_grad():
                (token_losses(model, batch, replace(ctx, compile=False)).sum() / tokens).backward()
    for hook in hooks:
        hook.remove()
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_()
    return total if seen else _sizes(model, kept)


def _squared(total: Tensor, pick: Pick, parameter: Tensor) -> None:
    """Add what is kept of a gradient's squares, and let go of it."""
    assert parameter.grad is not None
    total += pick(parameter.grad.square_())
    parameter.grad = None


def largest(values: Tensor, reduction: int) -> Tensor:
    """Places of the largest, in order."""
    return values.topk(len(values) // reduction).indices.sort().values


# ---- cutting -----------------------------------------------------------------------------------------------


@dataclass
class Cut:
    """Which dimensions of what width are kept, in one block."""

    hidden: Tensor
    width: int
    """Of the hidden dimensions before."""
    head: Tensor
    head_width: int

    def vector(self, size: int) -> Tensor | None:
        """What is kept of a norm's weights, or None where its width is not known."""
        return {self.width: self.hidden, self.head_width: self.head}.get(size)


@torch.no_grad()
def cut_decoder(
    model: nn.Module, small: nn.Module, layers: list[int], reduction: int, worth: dict[str, Tensor]
) -> None:
    """Fill ``small`` with weights of the model's decoder.

    Raises:
        UserError: an architecture whose blocks hold something else than linear layers and norms.
    """
    decoder, config = model.get_decoder(), model.config.get_text_config()
    names = {id(p): n for n, p in model.named_parameters()}
    table = worth[names[id(model.get_input_embeddings().weight)]]
    hidden, size = largest(table, reduction), head_size(config)
    blocks, small_blocks = sharding.blocks(decoder), sharding.blocks(small)
    if len(table) != config.hidden_size:
        raise UserError(
            "the embedding is not as wide as the blocks, so that none of its dimensions can be kept: "
            f"{RANDOM}."
        )
    known = [
        {n: worth[names[id(p)]] for n, p in blocks[i].named_parameters() if names[id(p)] in worth}
        for i in layers
    ]
    heads = kept_of_heads(decoder, small, [blocks[i] for i in layers], known, reduction)
    for i, block, kept, head in zip(layers, small_blocks, known, heads, strict=True):
        cut_block(blocks[i], block, Cut(hidden, len(table), head, size), kept, reduction)
    within = {id(p) for b in (*blocks, *small_blocks) for p in b.parameters()}
    large = dict(decoder.named_parameters())
    for name, parameter in small.named_parameters():
        if id(parameter) not in within and parameter.dim() == 1:                        # the final norm
            parameter.copy_(large[name][hidden.to(parameter.device)])


def kept_of_heads(
    decoder: nn.Module,
    small: nn.Module,
    blocks: list[nn.Module],
    worth: list[dict[str, Tensor]],
    reduction: int,
) -> list[Tensor]:
    """The dimensions of a head that each block keeps. Where they turn with positions, one choice holds for
    all blocks, and ``small`` is given its angles."""
    config, width = decoder.config.get_text_config(), decoder.config.get_text_config().hidden_size
    found = [of_head(readers_of(parts(b)["attention"], width), of, head_size(config))
             for b, of in zip(blocks, worth, strict=True)]
    if any(one is None for one in found):
        return [kept_of_head(config, reduction)] * len(blocks)
    if not rotary(config):
        return [kept_of_head(config, reduction, one) for one in found]
    large, narrow = angles(decoder), angles(small)
    kept = kept_of_head(config, reduction, torch.stack([one for one in found if one is not None]).sum(0))
    if large is None or narrow is None:
        kept = kept_of_head(config, reduction)
    else:
        narrow.copy_(large[kept[: len(narrow)].to(large.device)])
    return [kept] * len(blocks)


def readers_of(layers: dict[str, nn.Module], width: int) -> list[str]:
    """Those of a part's layers that read the hidden states: all but the last one that writes to them."""
    writer = next((n for n in reversed(layers) if in_out(layers[n])[1] == width), "")
    return [n for n, layer in layers.items() if n != writer and in_out(layer)[0] == width]


def of_head(readers: list[str], worth: dict[str, Tensor], size: int) -> Tensor | None:
    """What each dimension of a head is worth, over all heads: the product over the layers that make queries,
    keys and values, summed over kept hidden dimensions. None where layers hold no whole heads."""
    product: Tensor | float = 1.0
    for name in readers:
        values = worth[f"{name}.weight"].double()
        if len(values) % size:
            return None
        mean = values.view(-1, size, values.shape[1]).mean(0)
        product = product * mean / mean.mean().clamp(min=1e-300)
    return product.sum(1).cpu() if isinstance(product, Tensor) else None


def parts(block: nn.Module) -> dict[str, dict[str, nn.Module]]:
    """The linear layers of a block, ``attention`` and ``mlp``, by their names in it."""
    linear = {n: m for n, m in block.named_modules() if type(m) in LINEAR}
    role = roles(nn.ModuleList([block]), [f"0.{n}" for n in linear])
    return {
        part: {n: m for n, m in linear.items() if role[f"0.{n}"] == part} for part in ("attention", "mlp")
    }


def cut_block(block: nn.Module, small: nn.Module, cut: Cut, worth: dict[str, Tensor], reduction: int) -> None:
    done: set[str] = set()
    for role, mine in parts(block).items():
        if mine:
            done |= cut_part(mine, small, cut, worth, role, reduction)
    for name, parameter in small.named_parameters():
        if name not in done:
            large = block.get_parameter(name)
            kept = cut.vector(len(large)) if large.dim() == 1 else None
            if kept is None:
                raise UserError(
                    f"{name} of a {type(block).__name__} is neither a linear layer nor a norm, so that no "
                    f"part of it can be taken over: {RANDOM}."
                )
            parameter.copy_(large[kept.to(large.device)])


def cut_part(layers: dict[str, nn.Module], small: nn.Module, cut: Cut, worth: dict[str, Tensor], role: str,
             reduction: int) -> set[str]:
    """The linear layers of an attention or a feed-forward part: the last one of the stream's width writes to
    it, the others read.

    All of them keep the same inner dimensions: those of the largest importance, of each head the same ones.
    """
    writer = next((n for n in reversed(layers) if in_out(layers[n])[1] == cut.width), "")
    readers = [n for n in layers if n != writer]
    if not writer or not readers or any(in_out(layers[n])[0] != cut.width for n in readers):
        raise UserError(
            f"{', '.join(layers)} are no {role} layers that read from and write to the hidden states, so "
            f"that no part of them can be taken over: {RANDOM}."
        )
    inner = in_out(layers[writer])[0]
    unit, kept = cut.head_width, cut.head
    if role == "mlp":
        unit, kept = inner, largest(neurons(readers, worth, inner), reduction)
    done = set()
    for name, layer in layers.items():
        columns, rows = in_out(layer)
        at_rows = (cut.hidden if name == writer else repeated(kept, unit, rows)).to(layer.weight.device)
        at_columns = (repeated(kept, unit, columns) if name == writer else cut.hidden).to(layer.weight.device)
        target = small.get_submodule(name)
        as_linear_weight(target).copy_(as_linear_weight(layer)[at_rows][:, at_columns])
        if layer.bias is not None:
            target.bias.copy_(layer.bias[at_rows])
        done |= {f"{name}.weight", f"{name}.bias"}
    return done


def neurons(readers: list[str], worth: dict[str, Tensor], inner: int) -> Tensor:
    """The importance of each neuron: products over the layers that make it, summed over kept dimensions."""
    product: Tensor | float = 1.0
    for name in readers:
        for group in worth[f"{name}.weight"].double().split(inner):  # a gate may be fused with its layer
            product = product * group / group.mean().clamp(min=1e-300)
    assert isinstance(product, Tensor)
    return product.sum(1)


def repeated(kept: Tensor, unit: int, size: int) -> Tensor:
    """The same places in each of the ``size / unit`` heads or groups."""
    return (torch.arange(0, size, unit)[:, None] + kept.cpu()[None, :]).flatten()
