"""LoRAM: train LoRA on a pruned model, and put what it learned back into the whole one.

"Train Small, Infer Large: Memory-Efficient LoRA Training for Large Language Models" (arXiv 2502.13533). In
each block but the first and the last ones, the share ``ratio`` of the feed-forward neurons, and of the
key-value heads with the query heads that they serve, is left out. With R and C the rows and columns of a
layer W [out, in] that stay,

    in training:   y = (W[R, C] + s B A) x,   A [rank, len(C)] and B [len(R), rank] trained, s = alpha / rank,
    otherwise:     y = (W + s B* A*) x,   A* [rank, in] having A as its columns C, B* [out, rank] B as rows R,

and zeros elsewhere. What is measured, generated and exported is therefore the whole model, and recovery takes
no step of its own: the stage ends as a plain checkpoint, with A* and B* beside it in PEFT's format, for the
original model. Training holds only the pruned weights; the whole ones wait in a file in the stage's folder
(without one, in the system's folder for temporary files) and are read whenever the model is not training.

The units that stay have the largest sum of squared weights over the layers that share them, or are drawn at
random. The paper's other criteria (gradients, single weights) are left out, and so is its alignment, a short
pretraining of the pruned model that narrows the gap between the two. Attention with queries, keys and values
in one layer (GPT-2) stays whole.

Do not use it where the whole model fits: LoRA on it learns more. The training loss logged is that of the
pruned model, far above the one that is measured.

Errors: nothing that could be left out; a layer that has an adapter or whose weight is tied.
"""
from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from trainwright.core.bench import Bench
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Surgery
from trainwright.finetune.lora import Lora, LoraLinear
from trainwright.lm import deltas
from trainwright.lm.layers import (
    as_linear_weight,
    block_names,
    compute_dtype,
    freeze,
    in_out,
    linear_layers,
    put,
    roles,
)
from trainwright.lm.pruned import head_size

FILE = "adapter_model.safetensors"


class Loram(Surgery):
    """LoRA on a pruned model, recovered on the whole one."""

    rank: int = 8
    """Rank of the addition."""
    alpha: float = 16.0
    """Scale of the addition, divided by the rank."""
    dropout: float = 0.0
    """Share of the inputs of A that are dropped in training."""
    ratio: float = 0.75
    """Share of neurons and of key-value heads that is left out in training; at least one stays."""
    first: int = 1
    """Blocks at the beginning that stay whole."""
    last: int = 1
    """Blocks at the end that stay whole."""
    choose: Literal["magnitude", "random"] = "magnitude"
    """Which stay: those of the largest weights, or any."""
    bench: ClassVar[Bench | None] = Bench(
        suite="adapt",
        claim="15.81 times less storage for base weights in training (70 B), better than LoRA on a "
              "smaller model",
        metric="peak_memory_bytes",
        add=(
            {"use": "loram", "ratio": 0.5, "first": 0, "last": 0},
            {"use": "adamw", "lr": 6e-3, "weight_decay": 0.0},
        ),
        baseline=({"use": "lora", "rank": 8}, {"use": "adamw", "lr": 6e-3, "weight_decay": 0.0}),
        versus="LoRA",
        search={"adamw.lr": [2e-3, 6e-3, 1.8e-2]},
        scale="of a small model the weights are a small part of what training holds",
    )
    example: ClassVar[dict[str, Any]] = {"rank": 2, "alpha": 4.0, "ratio": 0.5, "first": 0, "last": 0}

    def __post_init__(self) -> None:
        if self.rank < 1 or self.first < 0 or self.last < 0:
            raise ValueError(
                f"rank must be 1 or more, first and last 0 or more, not {self.rank}, {self.first} and "
                f"{self.last}."
            )
        if not 0 <= self.dropout < 1 or not 0 < self.ratio < 1:
            raise ValueError(
                "dropout must be at least 0 and less than 1, and ratio above 0 and less than 1, not "
                f"{self.dropout} and {self.ratio}."
            )

    @property
    def lora(self) -> Lora:
        """The method that adds to the pruned layers."""
        return Lora(rank=self.rank, alpha=self.alpha, dropout=self.dropout)

    def claims(self, model: nn.Module) -> set[str]:
        return {
            f"{n}.{p}" for n, m in linear_layers(model, "all-linear").items() for p, _ in m.named_parameters()
        }

    def operate(self, model: nn.Module, ctx: Context) -> None:
        layers = linear_layers(model, "all-linear")
        found = self.parts(model, layers)
        every = {
            n: [torch.arange(size, device=m.weight.device) for size in reversed(in_out(m))]
            for n, m in layers.items()
        }
        for part in found:
            kept = self.kept(part, layers, ctx)
            for name, several in part.readers.items():
                every[name][0] = places(kept, part.units, in_out(layers[name])[1], several)
            every[part.writer][1] = places(kept, part.units, in_out(layers[part.writer])[0])
        freeze(model)
        for name, (rows, columns) in every.items():
            put(
                model,
                name,
                LoramLinear(layers.pop(name), self, rows, columns, ctx.rng(f"loram/{name}", at=0), ctx),
            )

    def parts(self, model: nn.Module, layers: dict[str, nn.Module]) -> list[Part]:
        blocks = block_names(model)
        found = [
            part
            for block in blocks[self.first : len(blocks) - self.last]
            for part in parts(model, layers, block)
        ]
        if not any(self.stay(part) < part.units for part in found):
            raise UserError(
                f"loram: there is nothing to leave out: of {len(blocks)} blocks the first {self.first} and "
                f"the last {self.last} stay whole, and ratio = {self.ratio} of what the others have is less "
                "than one unit."
            )
        return found

    def stay(self, part: Part) -> int:
        """How many units are kept."""
        return max(1, part.units - round(self.ratio * part.units))

    def kept(self, part: Part, layers: dict[str, nn.Module], ctx: Context) -> Tensor:
        if self.choose == "random":
            any_of = torch.randperm(part.units, generator=ctx.rng(f"loram/{part.writer}/kept", at=0))[
                : self.stay(part)
            ]
            return any_of.sort().values.to(layers[part.writer].weight.device)
        return sizes(part, layers).topk(self.stay(part)).indices.sort().values

    def mine(self, model: nn.Module) -> dict[str, LoramLinear]:
        """The layers that this method, and not another of its kind, has put in."""
        return {n: m for n, m in model.named_modules() if isinstance(m, LoramLinear) and m.owner == self}

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        for name, layer in self.mine(model).items():
            put(model, name, layer.recovered())

    def recovered(self, model: nn.Module) -> dict[str, Tensor]:
        """A* and B* of each layer, under PEFT's names."""
        return {f"base_model.model.{n}.lora_{part}.weight": matrix.cpu().contiguous()
                for n, m in self.mine(model).items() for part, matrix in zip("AB", m.matrices(), strict=True)}

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """The recovered LoRA as ``adapter_config.json`` and ``adapter_model.safetensors``, as in PEFT."""
        self.lora.save_delta(model, folder)
        save_file(self.recovered(model), folder / FILE, metadata={"format": "pt"})

    @torch.no_grad()
    def load_delta(self, model: nn.Module, folder: Path) -> None:
        whole = self.recovered(model)
        deltas.read(whole, folder / FILE)
        for name, layer in self.mine(model).items():
            layer.lora_A.copy_(whole[f"base_model.model.{name}.lora_A.weight"][:, layer.columns.cpu()])
            layer.lora_B.copy_(whole[f"base_model.model.{name}.lora_B.weight"][layer.rows.cpu()])


# ---- what goes together ------------------------------------------------------------------------------------


class Part(NamedTuple):
    """Layers of an attention or feed-forward part that lose the same units: rows of those that read the
    hidden states, columns of the one that writes to them."""

    units: int
    """Neurons, or key-value heads with the query heads that they serve."""
    readers: dict[str, int]
    """Names of the layers that read, and how many layers each one stacks (a gate fused with its layer: 2)."""
    writer: str


def parts(model: nn.Module, layers: Mapping[str, nn.Module], block: str) -> list[Part]:
    """The parts of a block from which units can go. What has another form (attention that makes queries, keys
    and values in one layer, or norms over all heads) is not among them."""
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
    return (
        None
        if any(r % inner for r in rows.values())
        else Part(inner, {n: r // inner for n, r in rows.items()}, writer)
    )


def _attention(model: nn.Module, readers: dict[str, nn.Module], writer: str, inner: int) -> Part | None:
    config = model.config.get_text_config()
    size, heads = head_size(config), config.num_attention_heads
    groups = config.to_dict().get("num_key_value_heads") or heads
    place = writer.rpartition(".")[0]
    others = [
        p
        for n, p in model.get_submodule(place).named_parameters()
        if f"{place}.{n.rpartition('.')[0]}" not in readers and f"{place}.{n.rpartition('.')[0]}" != writer
    ]
    known = sorted(in_out(m)[1] for m in readers.values()) == sorted(
        (heads * size, groups * size, groups * size)
    )
    if not known or inner != heads * size or any(p.numel() > size for p in others):
        return None
    return Part(groups, dict.fromkeys(readers, 1), writer)


def places(kept: Tensor, units: int, size: int, layers: int = 1) -> Tensor:
    """The rows of the units kept, among ``size`` rows of ``layers`` layers stacked one behind another."""
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


# ---- layers ------------------------------------------------------------------------------------------------


def on_disk(tensor: Tensor, folder: Path | None) -> Tensor:
    """A copy in an unnamed file that is gone with the tensor: only what is read of it takes memory."""
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
    """In training some rows and columns of a layer, with an addition to them; otherwise the whole layer, with
    the addition at the places of those rows and columns."""

    rows: Tensor
    columns: Tensor

    def __init__(
        self,
        layer: nn.Module,
        owner: Loram,
        rows: Tensor,
        columns: Tensor,
        rng: torch.Generator,
        ctx: Context,
    ) -> None:
        super().__init__(cut(layer, rows, columns), owner.lora, rng)
        self.owner = owner
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        self.whole = on_disk(as_linear_weight(layer), ctx.folder)
        self.whole_bias = None if layer.bias is None else layer.bias.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        kind = compute_dtype(x)
        at = x.reshape(-1, x.shape[-1]).to(kind)
        y = F.linear(
            at,
            self.whole.to(x.device, kind),
            None if self.whole_bias is None else self.whole_bias.to(x.device, kind),
        )
        low = F.linear(at.index_select(1, self.columns), self.lora_A.to(kind))
        y = y.index_add(1, self.rows, F.linear(low, self.lora_B.to(kind)), alpha=self.settings.scale)
        return y.view(*x.shape[:-1], y.shape[1])

    def matrices(self) -> tuple[Tensor, Tensor]:
        """A [rank, in] and B [out, rank] for the whole layer, zero where something was left out."""
        outputs, inputs = self.whole.shape
        A = self.lora_A.new_zeros(len(self.lora_A), inputs).index_copy(1, self.columns, self.lora_A.detach())
        return A, self.lora_B.new_zeros(outputs, self.lora_B.shape[1]).index_copy(
            0, self.rows, self.lora_B.detach()
        )

    def recovered(self) -> nn.Module:
        """The whole layer with the addition folded in."""
        A, B = self.matrices()
        whole = self.whole.to(A.device)
        return plain(
            self, torch.addmm(whole.float(), B, A, alpha=self.settings.scale).to(whole.dtype), self.whole_bias
        )
