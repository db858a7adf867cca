"""Units of a block that can be left out, and linear layers that train without some of them and compute with all of them."""
from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from trainwright.finetune.lora import LoraLinear
from trainwright.lm.layers import as_linear_weight, in_out, roles
from trainwright.lm.pruned import head_size

if TYPE_CHECKING:
    from trainwright.core.context import Context
    from trainwright.finetune.loram import Loram


# ---- what goes together ---------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """Layers of an attention or feed-forward part that lose the same units: rows of those that read the hidden states, columns
    of the one that writes to them."""

    units: int
    """Neurons, or key-value heads with the query heads that they serve."""
    readers: dict[str, int]
    """Names of the layers that read, and how many layers each of them is, one behind another (a gate fused with its layer)."""
    writer: str


def parts(model: nn.Module, layers: Mapping[str, nn.Module], block: str) -> list[Part]:
    """The parts of a block from which units can go. What has another form (attention that makes queries, keys and values in one
    layer, or norms over all heads) is not among them."""
    inside = {n: m for n, m in layers.items() if n.startswith(f"{block}.")}
    role = roles(model, inside)
    found = []
    for kind, form in (("attention", _attention), ("mlp", _mlp)):
        mine = {n: m for n, m in inside.items() if role[n] == kind}
        wide = model.config.get_text_config().hidden_size
        writer = next((n for n in reversed(mine) if in_out(mine[n])[1] == wide), "")
        readers = {n: m for n, m in mine.items() if n != writer}
        if writer and readers and all(in_out(m)[0] == wide for m in readers.values()):
            found.append(form(model, readers, writer, in_out(mine[writer])[0]))
    return [part for part in found if part is not None]


def _mlp(model: nn.Module, readers: dict[str, nn.Module], writer: str, inner: int) -> Part | None:
    rows = {n: in_out(m)[1] for n, m in readers.items()}
    return None if any(r % inner for r in rows.values()) else Part(inner, {n: r // inner for n, r in rows.items()}, writer)


def _attention(model: nn.Module, readers: dict[str, nn.Module], writer: str, inner: int) -> Part | None:
    config = model.config.get_text_config()
    size, heads = head_size(config), config.num_attention_heads
    groups = config.to_dict().get("num_key_value_heads") or heads
    place = writer.rpartition(".")[0]
    others = [p for n, p in model.get_submodule(place).named_parameters() if f"{place}.{n.rpartition('.')[0]}" not in readers
              and f"{place}.{n.rpartition('.')[0]}" != writer]
    known = sorted(in_out(m)[1] for m in readers.values()) == sorted((heads * size, groups * size, groups * size))
    if not known or inner != heads * size or any(p.numel() > size for p in others):
        return None
    return Part(groups, dict.fromkeys(readers, 1), writer)


def places(kept: Tensor, units: int, size: int, layers: int = 1) -> Tensor:
    """The rows that the units kept have among ``size``, which are those of so many layers one behind another."""
    each = size // layers // units
    one = (kept[:, None] * each + torch.arange(each, device=kept.device)).flatten()
    return (torch.arange(layers, device=kept.device)[:, None] * (size // layers) + one).flatten()


def sizes(part: Part, layers: Mapping[str, nn.Module]) -> Tensor:
    """Sum of the squared weights of each unit."""
    total = as_linear_weight(layers[part.writer]).detach().float().square().sum(0).view(part.units, -1).sum(1)
    for name, several in part.readers.items():
        rows = as_linear_weight(layers[name]).detach().float().square().sum(1)
        total = total + rows.view(several, part.units, -1).sum((0, 2))
    return total


# ---- layers ---------------------------------------------------------------------------------------------------------


def on_disk(tensor: Tensor, folder: Path | None) -> Tensor:
    """A copy in a file without a name, which is gone with the tensor: it takes memory as far as it is read."""
    tensor = tensor.detach()
    if tensor.is_meta:
        return tensor
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        file.flush()
        return torch.from_file(file.name, size=tensor.numel(), dtype=tensor.dtype).view(tensor.shape)


def cut(layer: nn.Module, rows: Tensor, columns: Tensor) -> nn.Module:
    """A layer of these rows and columns of W [out, in] alone, with a copy of its weights."""
    weight = as_linear_weight(layer).detach()[rows][:, columns]
    return plain(layer, weight, None if layer.bias is None else layer.bias.detach()[rows])


def plain(like: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A layer of the same kind on this W [out, in]."""
    transposed = isinstance(like, Conv1D) or (isinstance(like, LoramLinear) and like.transposed)
    outputs, inputs = weight.shape
    with torch.device("meta"):
        layer = Conv1D(outputs, inputs) if transposed else nn.Linear(inputs, outputs, bias=bias is not None)
    layer.weight = nn.Parameter((weight.T if transposed else weight).contiguous(), requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)
    return layer.train(like.training)


class LoramLinear(LoraLinear):
    """In training some rows and columns of a layer, with an addition to them; otherwise the whole layer, with the addition at
    the places of those rows and columns."""

    rows: Tensor
    columns: Tensor

    def __init__(self, layer: nn.Module, owner: Loram, rows: Tensor, columns: Tensor, rng: torch.Generator, ctx: Context) -> None:
        super().__init__(cut(layer, rows, columns), owner.lora, rng)
        self.owner = owner
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        self.whole = on_disk(as_linear_weight(layer), ctx.folder)
        self.whole_bias = None if layer.bias is None else layer.bias.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        kind = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        at = x.reshape(-1, x.shape[-1]).to(kind)
        y = F.linear(at, self.whole.to(x.device, kind), None if self.whole_bias is None else self.whole_bias.to(x.device, kind))
        low = F.linear(at.index_select(1, self.columns), self.lora_A.to(kind))
        y = y.index_add(1, self.rows, F.linear(low, self.lora_B.to(kind)), alpha=self.settings.scale)
        return y.view(*x.shape[:-1], y.shape[1])

    def matrices(self) -> tuple[Tensor, Tensor]:
        """A [rank, in] and B [out, rank] for the whole layer, zero where something was left out."""
        outputs, inputs = self.whole.shape
        A = self.lora_A.new_zeros(len(self.lora_A), inputs).index_copy(1, self.columns, self.lora_A.detach())
        return A, self.lora_B.new_zeros(outputs, self.lora_B.shape[1]).index_copy(0, self.rows, self.lora_B.detach())

    def recovered(self) -> nn.Module:
        """The whole layer with the addition folded in."""
        A, B = self.matrices()
        whole = self.whole.to(A.device)
        return plain(self, torch.addmm(whole.float(), B, A, alpha=self.settings.scale).to(whole.dtype), self.whole_bias)
