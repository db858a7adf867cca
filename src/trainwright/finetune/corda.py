"""CorDA: a LoRA that starts as the part of the weights which sample texts use most, or least.

"CorDA: Context-Oriented Decomposition Adaptation of Large Language Models for Task-Aware Parameter-Efficient
Fine-tuning" (arXiv 2406.05223). For a layer W [out, in] let X [tokens, in] be its inputs on one sample,
divided by the size of their largest entry, and

    C = mean over samples of X' X,   D = C + d mean(diag C) I,
    W D = U S V',   W = sum_i s_i u_i (v_i' D^-1),

with d = 0.01, doubled until ||D D^-1 - I||_F < 0.05. ``rank`` of these terms become the adapter; the rest is
frozen:

    B = U_r S_r^(1/2) [out, rank],   A = S_r^(1/2) V_r' D^-1 [rank, in],   y = (W - B_0 A_0) x + B A x,

where B_0 and A_0 are B and A at the start, so that the model starts as it was. ``mode`` chooses the terms:
``knowledge_preserved`` trains those of smallest s. Sample what is to be kept: what it uses most stays frozen.
``instruction_previewed`` trains those of largest s. Sample the task that is to be learned. Samples are rows
of training documents of the ``domains``, read once before training. Sampling for the wrong mode turns the
method upside down. C is not centred, and W is multiplied by C itself, not by its root.

Everything is computed in float32, and C of all layers is held at once (in x in numbers a layer, 4 bytes
each). The product is not scaled: what PEFT calls alpha equals the rank. Train without weight decay, which
would pull B A, and with it a part of W, to zero. The authors' code also trains the biases of the layers; here
they are frozen. The delta stores B_0 and A_0 as well.

Do not use it without texts that represent what is to be kept or learned (use ``lora``), or on weights of so
low a precision that W - B_0 A_0 loses digits. In a plan made before the corpus exists, C = I stands in.

Errors: a rank above a layer's width; no corpus; fewer tokens than inputs where the smallest terms are trained
(C would have directions that no text uses, and their order would be noise); ``layers`` matches no linear
layer, or one that is taken or tied.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Surgery
from trainwright.core.settings import Count
from trainwright.corpus.tokens import open_corpus
from trainwright.lm import deltas
from trainwright.lm.layers import (
    Adapter,
    as_linear_weight,
    compute_dtype,
    freeze,
    in_out,
    installed,
    linear_layers,
    put,
)
from trainwright.lm.losses import most_positions

FILE = "corda.safetensors"
PARTS = ("corda_A", "corda_B", "start_A", "start_B")
DAMPING = 0.01
"""Share of its mean that is added to the diagonal of a covariance before it is inverted."""
INVERTED = 0.05
"""How far the product with the inverse may be from the identity; beyond, the damping is doubled."""


class Corda(Surgery):
    """A LoRA that starts as the part of the weights which sample texts use most, or least."""

    mode: Literal["knowledge_preserved", "instruction_previewed"] = "instruction_previewed"
    """Whether to train the terms that matter least to the samples (to keep them) or most (to learn them)."""
    rank: Count = 8
    """Terms that are trained: columns of B, rows of A."""
    domains: tuple[str, ...] = ()
    """Domains of the corpus that the samples are of; none named: all of them."""
    samples: Count = 256
    """Rows of text that are looked at."""
    length: Count = 2048
    """Tokens of such a row, at most as many as the model has positions."""
    layers: str = "all-linear"
    """Layers: all-linear, attention, mlp, or a glob of module names such as *.q_proj."""
    example: ClassVar[dict[str, Any]] = {"rank": 2, "samples": 4, "length": 24}

    def claims(self, model: nn.Module) -> set[str]:
        return {f"{name}.weight" for name in linear_layers(model, self.layers)}

    def operate(self, model: nn.Module, ctx: Context) -> None:
        layers = linear_layers(model, self.layers)
        narrow = next((n for n, m in layers.items() if min(in_out(m)) < self.rank), None)
        if narrow is not None:
            raise UserError(
                f"corda: rank = {self.rank} is more than the width of {narrow}, "
                f"{min(in_out(layers[narrow]))}; choose a lower rank, or a narrower 'layers'."
            )
        seen = self.look(model, layers, ctx)
        freeze(model)
        for name, layer in layers.items():
            put(model, name, CordaLinear(layer, self, seen.pop(name, None), name))

    def look(self, model: nn.Module, layers: dict[str, nn.Module], ctx: Context) -> dict[str, Tensor]:
        """C of each layer; nothing where there is no run yet, and so no corpus."""
        if not ctx.inputs.get("data"):
            if ctx.folder is not None:
                raise UserError(
                    'corda takes its samples from the stage\'s corpus: write from = { data = "NAME", … }.'
                )
            return {}
        samples = rows(model, self.domains, self.samples, self.length, ctx)
        widest = max(in_out(layer)[0] for layer in layers.values())
        tokens = sum(map(len, samples))
        if self.mode == "knowledge_preserved" and tokens < widest:
            raise UserError(
                f"corda: {tokens} tokens of samples do not show which of {widest} inputs are used least; "
                "raise samples or length, or name more domains."
            )
        return covariances(model, layers, samples)

    def mine(self, model: nn.Module) -> dict[str, CordaLinear]:
        """The layers that this method has put in, by name."""
        return installed(model, CordaLinear, self)

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        for name, layer in self.mine(model).items():
            layer.add(layer.corda_B @ layer.corda_A)
            put(model, name, layer.plain())

    def learned(self, model: nn.Module) -> dict[str, Tensor]:
        return {f"{n}.{part}": getattr(m, part) for n, m in self.mine(model).items() for part in PARTS}

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """``corda.safetensors``: A, B, A_0 and B_0 of each layer; B A - B_0 A_0 is added to the original."""
        deltas.write(self.learned(model), folder / FILE)

    @torch.no_grad()
    def load_delta(self, model: nn.Module, folder: Path) -> None:
        for layer in self.mine(model).values():
            layer.add(layer.start_B @ layer.start_A)
        deltas.read(self.learned(model), folder / FILE)
        for layer in self.mine(model).values():
            layer.add(-layer.start_B @ layer.start_A)


class CordaLinear(Adapter):
    """A linear layer of which one ``Corda`` trains some terms; ``weight`` holds the others."""

    start_A: Tensor
    start_B: Tensor

    @torch.no_grad()
    def __init__(self, layer: nn.Module, settings: Corda, covariance: Tensor | None, name: str) -> None:
        super().__init__(layer)
        self.settings, rank = settings, settings.rank
        U, S, V = decompose(as_linear_weight(self).float(), covariance, name)
        chosen = slice(-rank, None) if settings.mode == "knowledge_preserved" else slice(rank)
        root = S[chosen].sqrt()
        A, B = root[:, None] * V[chosen], U[:, chosen] * root
        self.corda_A, self.corda_B = nn.Parameter(A.contiguous()), nn.Parameter(B.contiguous())
        self.register_buffer("start_A", A.clone(memory_format=torch.contiguous_format))
        self.register_buffer("start_B", B.clone(memory_format=torch.contiguous_format))
        self.add(-B @ A)

    @torch.no_grad()
    def add(self, delta: Tensor) -> None:
        """Add to the frozen weight, in float32."""
        weight = as_linear_weight(self)
        weight.copy_(weight.float() + delta)

    def forward(self, x: Tensor) -> Tensor:
        kind = compute_dtype(x)
        rows = x.reshape(-1, self.in_features).to(kind)
        y = self.linear(rows).addmm_(F.linear(rows, self.corda_A.to(kind)), self.corda_B.to(kind).T)
        return y.view(*x.shape[:-1], self.out_features)


def decompose(weight: Tensor, covariance: Tensor | None, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """U [out, k], S [k] falling, V [k, in] with U diag(S) V = weight: the SVD of weight D, its right factor
    times D^-1.

    D is the damped covariance, the identity where there is none.

    Raises:
        UserError: the layer has read nothing, or no numbers.
    """
    if covariance is None:
        return torch.linalg.svd(weight, full_matrices=False)  # type: ignore[no-any-return]
    mean, identity, damping = (
        covariance.diagonal().mean(),
        torch.eye(len(covariance), device=weight.device),
        DAMPING,
    )
    if not (mean > 0 and mean.isfinite()):
        raise UserError(
            f"corda: {name} has read nothing but zeros, or no finite numbers, in the samples: leave it "
            "out ('layers')."
        )
    damped = covariance + damping * mean * identity
    while torch.dist(damped @ (inverse := torch.linalg.inv(damped)), identity) >= INVERTED:
        damping *= 2
        damped = covariance + damping * mean * identity
    U, S, V = torch.linalg.svd(weight @ damped, full_matrices=False)
    return U, S, V @ inverse


# ---- what layers read of sample texts ----------------------------------------------------------------------


def rows(model: nn.Module, domains: Sequence[str], samples: int, length: int, ctx: Context) -> list[Tensor]:
    """Training documents of some domains (none named: all) in random order, one behind another, in rows of
    ``length`` tokens.

    At most ``samples`` rows, each int64 of at most the model's positions. A corpus of fewer tokens gives
    fewer rows, and a shorter last one.
    """
    corpus = open_corpus(ctx.path("data"))
    found = corpus.select("train", domains)
    length = min(length, most_positions(model) or length)
    pieces, have = list[Tensor](), 0
    for i in torch.randperm(len(found), generator=ctx.rng("calibration", at=0)).tolist():
        if have >= samples * length:
            break
        pieces.append(
            torch.from_numpy(corpus.read(int(found.shard[i]), int(found.offset[i]), int(found.length[i])))
        )
        have += len(pieces[-1])
    return list(torch.cat(pieces)[:samples * length].split(length))


@torch.no_grad()
def covariances(model: nn.Module, layers: Iterable[str], samples: Sequence[Tensor]) -> dict[str, Tensor]:
    """Of each layer named the mean over samples of X' X [in, in], float32, not centred; X [tokens, in] is
    what it reads, divided by the size of its largest entry. The model is run once over all samples, in
    evaluation mode."""
    total: dict[str, Tensor] = {}
    hooks = []
    for name in layers:
        layer, (width, _) = model.get_submodule(name), in_out(model.get_submodule(name))
        total[name] = torch.zeros(width, width, device=layer.weight.device)
        hooks.append(layer.register_forward_pre_hook(_adding_to(total[name])))
    training, device = model.training, next(model.parameters()).device
    try:
        for row in samples:
            model.eval()(input_ids=row[None].to(device), use_cache=False)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return {name: one.div_(len(samples)) for name, one in total.items()}


def _adding_to(total: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(layer: nn.Module, given: tuple[Any, ...]) -> None:
        x = given[0].detach().reshape(-1, len(total)).float()
        top = x.max().abs()  # of the largest entry, not the entry of largest size
        if top > 0:
            total.addmm_((x / top).T, x / top)
    return hook
