"""LoRA: freeze the model and learn a low-rank addition to its linear layers.

"LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685); ``rslora`` is the scale of "A Rank
Stabilization Scaling Factor for Fine-Tuning with LoRA" (arXiv 2312.03732).

    y = W x + s B A x,    s = alpha / rank   (rslora: alpha / sqrt(rank))

W is [out, in] and frozen. A is [rank, in] and starts uniform in +-1/sqrt(in), B is [out, rank] and starts at
zero, so that the model starts as it was. ``dropout`` acts only on the input of A. A and B are float32 and are
computed in the dtype of the activations. For export the addition is folded into W, and kept beside it in
PEFT's format.

Do not use it to learn much that is new: full training, or a higher rank, forgets more but learns more. It
cannot be combined with a method that changes the same weights.

Errors: ``layers`` matches no linear layer, or one that has an adapter or a tied weight.
"""
from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel

from trainwright.core.context import Context
from trainwright.core.method import Surgery
from trainwright.core.settings import Count, Part
from trainwright.lm.layers import (
    Adapter,
    as_linear_weight,
    compute_dtype,
    freeze,
    installed,
    linear_layers,
    put,
    shortest,
)


class Lora(Surgery):
    """A trained low-rank addition to frozen linear layers."""

    rank: Count = 8
    """Rank of the addition: columns of B, rows of A."""
    alpha: float = 16.0
    """Scale of the addition, divided by the rank."""
    dropout: Part = 0.0
    """Share of the inputs of A that are dropped in training."""
    layers: str = "all-linear"
    """Layers: all-linear, attention, mlp, or a glob of module names such as *.q_proj."""
    rslora: bool = False
    """Divide alpha by the square root of the rank, for high ranks."""
    example: ClassVar[dict[str, Any]] = {"rank": 2, "alpha": 4.0}

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def claims(self, model: nn.Module) -> set[str]:
        return {f"{name}.weight" for name in linear_layers(model, self.layers)}

    def operate(self, model: nn.Module, ctx: Context) -> None:
        layers = linear_layers(model, self.layers)
        freeze(model)
        for name, layer in layers.items():
            put(model, name, LoraLinear(layer, self, ctx.rng(f"lora/{name}", at=0)))

    def mine(self, model: nn.Module) -> dict[str, LoraLinear]:
        """The layers that this method has put in, by name."""
        return installed(model, LoraLinear, self)

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        for name, layer in self.mine(model).items():
            weight = as_linear_weight(layer)
            weight.copy_(
                torch.addmm(weight.float(), layer.lora_B.float(), layer.lora_A.float(), alpha=self.scale)
            )
            put(model, name, layer.plain())

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """``adapter_config.json`` and ``adapter_model.safetensors``, which ``peft.PeftModel`` reads."""
        layers = self.mine(model)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({f"base_model.model.{n}.{part}.weight": getattr(m, part).detach().cpu().contiguous()
                   for n, m in layers.items() for part in ("lora_A", "lora_B")},
                  folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM" if isinstance(model, GenerationMixin) else None,
            "base_model_name_or_path": model.name_or_path if isinstance(model, PreTrainedModel) else "",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "use_rslora": self.rslora,
            "bias": "none",
            "fan_in_fan_out": any(m.transposed for m in layers.values()),
            "inference_mode": True,
            "target_modules": shortest(model, layers),
        }
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


class LoraLinear(Adapter):
    """A linear layer with the addition of one ``Lora``."""

    def __init__(self, layer: nn.Module, settings: Lora, rng: torch.Generator) -> None:
        super().__init__(layer)
        self.settings = settings
        start = torch.empty(settings.rank, self.in_features)
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=rng)
        self.lora_A = nn.Parameter(start.to(self.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, settings.rank, device=self.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        kind = compute_dtype(x)
        rows = x.reshape(-1, self.in_features).to(
            kind
        )  # cast once for both paths; 2-D, so that B A x adds in place
        y = self.linear(rows)
        low = F.linear(F.dropout(rows, self.settings.dropout, self.training), self.lora_A.to(kind))
        y = y.addmm_(low, self.lora_B.to(kind).T, alpha=self.settings.scale)
        return y.view(*x.shape[:-1], self.out_features)
