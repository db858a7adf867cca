"""LoRAM: train LoRA on a pruned model, and put what it learned back into the whole one.

"Train Small, Infer Large: Memory-Efficient LoRA Training for Large Language Models" (arXiv 2502.13533). From each block but the
first and the last ones the share ``ratio`` of feed-forward neurons, and of key-value heads with the query heads that they serve,
is left out. With R and C the rows and columns of a layer W [out, in] that stay,

    in training:   y = (W[R, C] + s B A) x,   s = alpha / rank,   A [rank, len(C)], B [len(R), rank], all but A and B frozen,
    else:          y = (W + s B* A*) x,   where A* [rank, in] has A as its columns C, B* [out, rank] has B as its rows R,

and zeros elsewhere. So whatever is measured, generated and exported is the whole model, and recovery is no step of its own: the
stage ends as a plain checkpoint, with A* and B* beside it in the format of PEFT, for the original model. Training holds the
pruned weights alone; the whole ones wait in a file in the stage's folder (or, without one, the system's for temporary files),
and are read where the model is not in training.

Units stay that have the largest sum of squared weights over the layers that share them, or a random choice. The paper's other
choices (gradients, single weights) are left out, and so is its alignment: a short pretraining of the pruned model beforehand,
which narrows the gap between the two. Attention in which queries, keys and values are one layer (GPT-2) stays whole.

Not where the whole model fits: LoRA on it learns more. The loss that is logged in training is that of the pruned model, far
above the one that is measured.
Errors: nothing that could be left out; a layer that has an adapter, or whose weight is tied.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trainwright.core.bench import Bench
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Surgery
from trainwright.finetune._loram import LoramLinear, Part, parts, places, sizes
from trainwright.finetune.lora import Lora
from trainwright.lm import deltas
from trainwright.lm.layers import block_names, freeze, in_out, linear_layers, put

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
        suite="adapt", claim="15.81 times less storage for base weights in training (70 B), better than LoRA on a smaller model",
        metric="peak_memory_bytes", add=({"use": "loram", "ratio": 0.5, "first": 0, "last": 0},
                                         {"use": "adamw", "lr": 6e-3, "weight_decay": 0.0}),
        baseline=({"use": "lora", "rank": 8}, {"use": "adamw", "lr": 6e-3, "weight_decay": 0.0}), versus="LoRA",
        search={"adamw.lr": [2e-3, 6e-3, 1.8e-2]}, scale="of a small model the weights are a small part of what training holds")
    example: ClassVar[dict[str, Any]] = {"rank": 2, "alpha": 4.0, "ratio": 0.5, "first": 0, "last": 0}

    def __post_init__(self) -> None:
        if self.rank < 1 or self.first < 0 or self.last < 0:
            raise ValueError(f"rank must be 1 or more, first and last 0 or more, not {self.rank}, {self.first} and {self.last}.")
        if not 0 <= self.dropout < 1 or not 0 < self.ratio < 1:
            raise ValueError("dropout must be at least 0 and less than 1, and ratio above 0 and less than 1, not "
                             f"{self.dropout} and {self.ratio}.")

    @property
    def lora(self) -> Lora:
        """The method that adds to the pruned layers."""
        return Lora(rank=self.rank, alpha=self.alpha, dropout=self.dropout)

    def claims(self, model: nn.Module) -> set[str]:
        return {f"{n}.{p}" for n, m in linear_layers(model, "all-linear").items() for p, _ in m.named_parameters()}

    def operate(self, model: nn.Module, ctx: Context) -> None:
        layers = linear_layers(model, "all-linear")
        found = self.parts(model, layers)
        every = {n: [torch.arange(size, device=m.weight.device) for size in reversed(in_out(m))] for n, m in layers.items()}
        for part in found:
            kept = self.kept(part, layers, ctx)
            for name, several in part.readers.items():
                every[name][0] = places(kept, part.units, in_out(layers[name])[1], several)
            every[part.writer][1] = places(kept, part.units, in_out(layers[part.writer])[0])
        freeze(model)
        for name, (rows, columns) in every.items():
            put(model, name, LoramLinear(layers.pop(name), self, rows, columns, ctx.rng(f"loram/{name}", at=0), ctx))

    def parts(self, model: nn.Module, layers: dict[str, nn.Module]) -> list[Part]:
        blocks = block_names(model)
        found = [part for block in blocks[self.first:len(blocks) - self.last] for part in parts(model, layers, block)]
        if not any(self.stay(part) < part.units for part in found):
            raise UserError(f"loram: there is nothing to leave out: of {len(blocks)} blocks the first {self.first} and the last "
                            f"{self.last} stay whole, and ratio = {self.ratio} of what the others have is less than one unit.")
        return found

    def stay(self, part: Part) -> int:
        """How many units are kept."""
        return max(1, part.units - round(self.ratio * part.units))

    def kept(self, part: Part, layers: dict[str, nn.Module], ctx: Context) -> Tensor:
        if self.choose == "random":
            any_of = torch.randperm(part.units, generator=ctx.rng(f"loram/{part.writer}/kept", at=0))[:self.stay(part)]
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
        """``adapter_config.json`` and ``adapter_model.safetensors`` of the recovered LoRA, as PEFT reads them."""
        self.lora.save_delta(model, folder)
        save_file(self.recovered(model), folder / FILE, metadata={"format": "pt"})

    @torch.no_grad()
    def load_delta(self, model: nn.Module, folder: Path) -> None:
        whole = self.recovered(model)
        deltas.read(whole, folder / FILE)
        for name, layer in self.mine(model).items():
            layer.lora_A.copy_(whole[f"base_model.model.{name}.lora_A.weight"][:, layer.columns.cpu()])
            layer.lora_B.copy_(whole[f"base_model.model.{name}.lora_B.weight"][layer.rows.cpu()])
