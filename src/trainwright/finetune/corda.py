"""CorDA: a LoRA whose start is cut out of the weights, along the directions that some sample texts use most, or least.

"CorDA: Context-Oriented Decomposition Adaptation of Large Language Models for Task-Aware Parameter-Efficient Fine-tuning" (arXiv
2406.05223). For a layer W [out, in] let X [tokens, in] be what it reads of a sample, over the size of its largest entry, and

    C = mean over samples of X' X,   D = C + d mean(diag C) I,   W D = U S V',   W = sum_i s_i u_i (v_i' D^-1),

with d = 0.01, doubled until ||D D^-1 - I||_F < 0.05. Of these terms ``rank`` become the adapter, and the rest is frozen:

    B = U_r S_r^(1/2) [out, rank],   A = S_r^(1/2) V_r' D^-1 [rank, in],   y = (W - B_0 A_0) x + B A x,

B_0 and A_0 being B and A at the start, so that the model starts as it was. ``mode`` says which terms:
``knowledge_preserved`` trains those of the smallest s. Samples are of what is to be kept: what they use most stays frozen.
``instruction_previewed`` trains those of the largest s. Samples are of the task to be learned.
Samples are rows of training documents of the ``domains``, looked at once, before training; to take those of the other mode
turns the method round. C is the product itself, not centred, and W is multiplied by it, not by its root.

Computed in float32; C of all layers is held at once (in x in numbers a layer, 4 bytes each). The product is not scaled: what
PEFT calls alpha equals the rank. Weight decay would pull B A to zero, and with it a part of W: train without. The authors' code
also trains the biases of the layers; here they are frozen. The delta keeps B_0 and A_0 too.

Not without texts that stand for what is to be kept or learned (take ``lora``); not for models of so low a precision that
W - B_0 A_0 loses digits. Where nothing can be looked at (a plan before its corpus is made), C = I takes the place.
Errors: a rank above a layer's width; no corpus; fewer tokens than inputs where the smallest terms are trained (C would have
directions that no text uses, and their order would be noise); ``layers`` matches no linear layer, a taken or a tied one.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainwright.core.bench import Bench
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Surgery
from trainwright.finetune import _calibration
from trainwright.finetune._corda import CordaLinear
from trainwright.lm import deltas
from trainwright.lm.layers import freeze, in_out, linear_layers, put

FILE = "corda.safetensors"
PARTS = ("corda_A", "corda_B", "start_A", "start_B")


class Corda(Surgery):
    """A LoRA that starts as the part of the weights which sample texts use most, or least."""

    mode: Literal["knowledge_preserved", "instruction_previewed"] = "instruction_previewed"
    """Whether the terms that matter least (to keep what the samples hold) or most (to learn it) for the samples are trained."""
    rank: int = 8
    """Terms that are trained: columns of B, rows of A."""
    domains: tuple[str, ...] = ()
    """Domains of the corpus that the samples are of; none named: all of them."""
    samples: int = 256
    """Rows of text that are looked at."""
    length: int = 2048
    """Tokens of such a row, at most as many as the model has positions."""
    layers: str = "all-linear"
    """Layers: all-linear, attention, mlp, or a glob of module names such as *.q_proj."""
    bench: ClassVar[Bench | None] = Bench(
        suite="adapt", metric="forgetting/prose", search={"adamw.lr": [3e-3, 9e-3, 2.7e-2]},
        claim="knowledge-preserved, it forgets less than LoRA and learns more (LLaMA-2-7B: NQ open 10.4 % against 1.9 %, GSM8k "
              "45.6 % against 42.7 %)",
        add=({"use": "corda", "mode": "knowledge_preserved", "domains": ["prose"], "samples": 64, "length": 256},
             {"use": "adamw", "lr": 9e-3, "weight_decay": 0.0}),
        baseline=({"use": "lora", "rank": 8}, {"use": "adamw", "lr": 9e-3, "weight_decay": 0.0}), versus="LoRA")
    example: ClassVar[dict[str, Any]] = {"rank": 2, "samples": 4, "length": 24}

    def __post_init__(self) -> None:
        for name, value in (("rank", self.rank), ("samples", self.samples), ("length", self.length)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, not {value}.")

    def claims(self, model: nn.Module) -> set[str]:
        return {f"{name}.weight" for name in linear_layers(model, self.layers)}

    def operate(self, model: nn.Module, ctx: Context) -> None:
        layers = linear_layers(model, self.layers)
        narrow = next((n for n, m in layers.items() if min(in_out(m)) < self.rank), None)
        if narrow is not None:
            raise UserError(f"corda: rank = {self.rank} is more than the width of {narrow}, {min(in_out(layers[narrow]))}; "
                            "choose a lower rank, or a narrower 'layers'.")
        seen = self.look(model, layers, ctx)
        freeze(model)
        for name, layer in layers.items():
            put(model, name, CordaLinear(layer, self, seen.pop(name, None), name))

    def look(self, model: nn.Module, layers: dict[str, nn.Module], ctx: Context) -> dict[str, Tensor]:
        """C of each layer; nothing where there is no run yet, and so no corpus."""
        if not ctx.inputs.get("data"):
            if ctx.folder is not None:
                raise UserError("corda takes its samples from the stage's corpus: write from = { data = \"NAME\", … }.")
            return {}
        samples = _calibration.rows(model, self.domains, self.samples, self.length, ctx)
        widest = max(in_out(layer)[0] for layer in layers.values())
        tokens = sum(map(len, samples))
        if self.mode == "knowledge_preserved" and tokens < widest:
            raise UserError(f"corda: {tokens} tokens of samples do not tell which of {widest} inputs are used least; raise "
                            "samples or length, or name more domains.")
        return _calibration.covariances(model, layers, samples)

    def mine(self, model: nn.Module) -> dict[str, CordaLinear]:
        """The layers that this method, and not another of its kind, has put in."""
        return {n: m for n, m in model.named_modules() if isinstance(m, CordaLinear) and m.settings == self}

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        for name, layer in self.mine(model).items():
            layer.add(layer.corda_B @ layer.corda_A)
            put(model, name, layer.plain())

    def learned(self, model: nn.Module) -> dict[str, Tensor]:
        return {f"{n}.{part}": getattr(m, part) for n, m in self.mine(model).items() for part in PARTS}

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """``corda.safetensors``: of each layer A, B and what they were at the start; B A - B_0 A_0 is added to the original."""
        deltas.write(self.learned(model), folder / FILE)

    @torch.no_grad()
    def load_delta(self, model: nn.Module, folder: Path) -> None:
        for layer in self.mine(model).values():
            layer.add(layer.start_B @ layer.start_A)
        deltas.read(self.learned(model), folder / FILE)
        for layer in self.mine(model).values():
            layer.add(-layer.start_B @ layer.start_A)

