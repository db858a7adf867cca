"""LoRAM: train LoRA on a pruned model, and put what it learned back into the whole one.

"Train Small, Infer Large: Memory-Efficient LoRA Training for Large Language Models" (arXiv 2502.13533). Its
pruned base in 4 bits (QLoRAM) is ``frozen = "nf4"`` of the stage; the whole model stays as it is. Not here
are scores by gradients or by inverse Hessians, since a method that prunes may come before this one, and in
the alignment the training of embeddings and norms, which would have to be held twice. In each block but the
first and the last ones, the share ``ratio`` of the feed-forward neurons, and of the key-value heads with the
query heads that they serve, is left out. With R and C the rows and columns of a layer W [out, in] that stay,

    in training:   y = (W'[R, C] + s B A) x,   A [rank, len(C)] and B [len(R), rank] trained, s = alpha/rank,
    otherwise:     y = (W + s B* A*) x,   A* [rank, in] having A as its columns C, B* [out, rank] B as rows R,

and zeros elsewhere. W' is W, or what the alignment made of it: a short pretraining of the pruned model on
general texts, which narrows the gap between the two. It is a stage before this one, with ``align = true``::

    [[stage]]                                     # its model is whole, with zeros and their mask
    name = "aligned"
    kind = "train"
    from = { model = "base", data = "general" }
    methods = [{ use = "loram", align = true }, …]

    [[stage]]
    name = "adapted"
    kind = "train"
    from = { model = "base", pruned = "aligned", data = "task" }
    methods = [{ use = "loram" }, …]

``from.pruned`` is any model of the same shape that differs in these layers alone. If it has masks, they say
what is left out, so that ``magnitude``, ``wanda`` and whatever else prunes can come before; if not, the
settings do. With ``prune = "unstructured"`` or ``"2:4"`` single weights are zero in W': nothing is cut, R and
C are all rows and columns, and recovery is the identity.

What is measured, generated and exported is the whole, unaligned model, and recovery takes no step of its own:
the stage ends as a plain checkpoint, with A* and B* beside it in PEFT's format, for the original model.
Training holds only the pruned weights; the whole ones wait in a file in the stage's folder (without one, in
the system's folder for temporary files) and are read whenever the model is not training. The output head has
an addition too, unless its weights are those of the embeddings.

The units that stay are the largest, by the sum of squares over the layers that share a unit, or drawn at
random. In the alignment embeddings and norms, which the authors' script trains too, are those of the whole
model. Attention with queries, keys and values in one layer (GPT-2) stays whole. Single zeros are stored as
any weight: they save no memory here.

Do not use it where the whole model fits: LoRA on it learns more. The training loss logged is that of the
pruned model, far above the one that is measured.

Errors: nothing that could be left out; a layer that has an adapter or whose weight is tied; a ``from.pruned``
of another shape, or that differs outside of the layers.
"""
from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from trainwright import families
from trainwright.core import masks
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Surgery, Tensors
from trainwright.core.stage import Role
from trainwright.finetune.lora import Lora, LoraLinear
from trainwright.lm import deltas, sparsity
from trainwright.lm.layers import (
    LINEAR,
    as_linear_weight,
    block_names,
    compute_dtype,
    freeze,
    in_out,
    linear_layers,
    put,
)
from trainwright.lm.losses import output_head
from trainwright.lm.units import Part, alive, parts, places, sizes

FILE = "adapter_model.safetensors"
KEPT = "kept.safetensors"
Places = dict[str, tuple[Tensor, Tensor]]
"""The rows and columns of each layer that stay, in order."""


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
    prune: str = "structured"
    """What is left out: structured (neurons and heads), unstructured (single weights), or N:M, such as 4:8
    (of every 8 neighbouring inputs 4 stay)."""
    align: bool = False
    """Prune the model itself and train it, without an adapter: the stage before."""
    head: bool = True
    """Whether the output head has an addition, where it has weights of its own."""
    roles: ClassVar[dict[str, Role]] = {"pruned": Role()}
    example: ClassVar[dict[str, Any]] = {"rank": 2, "alpha": 4.0, "ratio": 0.5, "first": 0, "last": 0}

    def __post_init__(self) -> None:
        if self.rank < 1 or self.first < 0 or self.last < 0:
            raise ValueError(
                f"rank must be 1 or more, first and last 0 or more, not {self.rank}, {self.first} and "
                f"{self.last}."
            )
        if self.prune not in ("structured", "unstructured"):
            sparsity.check(0.0, self.prune, "prune")
        if not 0 <= self.dropout < 1 or not 0 < self.ratio < 1:
            raise ValueError(
                "dropout must be at least 0 and less than 1, and ratio above 0 and less than 1, not "
                f"{self.dropout} and {self.ratio}."
            )

    @property
    def lora(self) -> Lora:
        """The method that adds to the pruned layers."""
        return Lora(rank=self.rank, alpha=self.alpha, dropout=self.dropout)

    def layers(self, model: nn.Module) -> dict[str, nn.Module]:
        """The layers that it acts on: all of the blocks, and the head."""
        found, head = linear_layers(model, "all-linear"), output_head(model)
        if self.head and not self.align and type(head) in LINEAR:
            uses = sum(p is head.weight for _, p in model.named_parameters(remove_duplicate=False))
            found |= {n: m for n, m in model.named_modules() if m is head and uses == 1}
        return found

    def claims(self, model: nn.Module) -> set[str]:
        return {f"{n}.{p}" for n, m in self.layers(model).items() for p, _ in m.named_parameters()}

    def operate(self, model: nn.Module, ctx: Context) -> None:
        layers, given = self.layers(model), self.given(model, ctx)
        known = self.known(model, given)
        stay, hidden = self.places(model, layers, known, ctx), self.hidden(model, layers, known, ctx)
        freeze(model)
        for name, (rows, columns) in stay.items():
            layer = layers.pop(name)
            if self.align:
                kept = torch.zeros_like(as_linear_weight(layer), dtype=torch.bool)
                kept[rows[:, None], columns] = True
                sparsity.prune(model, name, layer, kept & hidden[name] if name in hidden else kept)
                layer.requires_grad_()
            else:
                seen = layer if given is None else given.get_submodule(name)
                own = LoramLinear(layer, self, rows, columns, ctx.rng(f"loram/{name}", at=0), ctx, seen)
                if name in hidden:
                    as_linear_weight(own).data.masked_fill_(~hidden[name], 0)
                put(model, name, own)

    def given(self, model: nn.Module, ctx: Context) -> nn.Module | None:
        """The model that ``from.pruned`` names. It is let go of once its layers are copied."""
        given = ctx.frozen.pop("pruned", None)
        if given is None and ctx.inputs.get("pruned"):
            given = families.load(ctx.path("pruned"), self.name)
        if given is None:
            return None
        inside = tuple(f"{n}." for n in linear_layers(model, "all-linear"))
        mine, other = dict(model.named_parameters()), dict(given.named_parameters())
        for name in (n for n in mine if n not in other or other[n].shape != mine[n].shape):
            raise UserError(f"loram: from.pruned is a model of another shape: {name} differs.")
        made = ctx.folder is not None                    # in a plan both have weights that nobody trained
        for name, parameter in mine.items() if made else ():
            outside = not name.startswith(inside)
            if outside and not torch.equal(other[name].to(parameter), parameter):
                raise UserError(
                    f"loram: from.pruned has another {name} than the model; only linear layers of the blocks "
                    "may differ, as after a stage with align = true."
                )
        return given

    def known(self, model: nn.Module, given: nn.Module | None) -> Tensors:
        """Masks that say what is left out: those of ``from.pruned``, or of the model to be aligned."""
        if given is not None:
            return masks.of(given)
        return masks.of(model) if self.align else {}

    def places(self, model: nn.Module, layers: dict[str, nn.Module], known: Tensors, ctx: Context) -> Places:
        """The rows and columns of each layer that stay."""
        every = {
            n: [torch.arange(size, device=m.weight.device) for size in reversed(in_out(m))]
            for n, m in layers.items()
        }
        for part in self.parts(model, layers, known):
            kept = alive(part, layers, known) if known else self.kept(part, layers, ctx)
            for name, several in part.readers.items():
                every[name][0] = places(kept, part.units, in_out(layers[name])[1], several)
            every[part.writer][1] = places(kept, part.units, in_out(layers[part.writer])[0])
        return {n: (rows, columns) for n, (rows, columns) in every.items()}

    def hidden(self, model: nn.Module, layers: dict[str, nn.Module], known: Tensors, ctx: Context) -> Tensors:
        """Where single weights are left out: those that stay (bool, [out, in]), by layer."""
        if self.prune == "structured" or known:
            return {}
        pattern, inside = self.prune if ":" in self.prune else "", tuple(f"{b}." for b in self.blocks(model))
        out = {}
        for name, layer in layers.items() if inside else ():
            if name.startswith(inside):
                scores = as_linear_weight(layer).detach().abs()
                if self.choose == "random":
                    drawn = torch.rand(scores.shape, generator=ctx.rng(f"loram/{name}/kept", at=0))
                    scores = drawn.to(scores.device)
                out[name] = sparsity.keep(scores, self.ratio, pattern, rows=False)
        if not out:
            raise self.nothing(model)
        return out

    def blocks(self, model: nn.Module) -> list[str]:
        """The blocks of which something is left out."""
        names = block_names(model)
        return names[self.first : len(names) - self.last]

    def parts(self, model: nn.Module, layers: dict[str, nn.Module], known: Tensors) -> list[Part]:
        """The parts of blocks from which units may go."""
        if known:
            return [part for block in block_names(model) for part in parts(model, layers, block)]
        if self.prune != "structured":
            return []
        found = [part for block in self.blocks(model) for part in parts(model, layers, block)]
        if not any(self.stay(part) < part.units for part in found):
            raise self.nothing(model)
        return found

    def nothing(self, model: nn.Module) -> UserError:
        return UserError(
            f"loram: there is nothing to leave out: of {len(block_names(model))} blocks the first "
            f"{self.first} and the last {self.last} stay whole, and ratio = {self.ratio} of what the others "
            "have is less than one unit."
        )

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

    def recovered(self, model: nn.Module) -> Tensors:
        """A* and B* of each layer, under PEFT's names."""
        return {f"base_model.model.{n}.lora_{part}.weight": matrix.cpu().contiguous()
                for n, m in self.mine(model).items() for part, matrix in zip("AB", m.matrices(), strict=True)}

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """The recovered LoRA as ``adapter_config.json`` and ``adapter_model.safetensors``, as in PEFT, and in
        ``kept.safetensors`` what was not left out."""
        if not self.align:
            self.lora.save_delta(model, folder)
            save_file(self.recovered(model), folder / FILE, metadata={"format": "pt"})
            parts, mine = ("rows", "columns"), self.mine(model).items()
            deltas.write({f"{n}.{p}": getattr(m, p) for n, m in mine for p in parts}, folder / KEPT)

    @torch.no_grad()
    def load_delta(self, model: nn.Module, folder: Path) -> None:
        whole = self.recovered(model)
        deltas.read(whole, folder / FILE)
        kept = load_file(folder / KEPT) if (folder / KEPT).is_file() else {}
        for name, layer in self.mine(model).items():
            if f"{name}.rows" not in kept or f"{name}.columns" not in kept:
                raise UserError(f"{folder} holds no {KEPT}, or one of another model: it lacks {name}.")
            layer.stay(kept[f"{name}.rows"], kept[f"{name}.columns"])
            layer.lora_A.copy_(whole[f"base_model.model.{name}.lora_A.weight"][:, layer.columns.cpu()])
            layer.lora_B.copy_(whole[f"base_model.model.{name}.lora_B.weight"][layer.rows.cpu()])


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


def cut(layer: nn.Module, rows: Tensor, columns: Tensor, like: Tensor) -> nn.Module:
    """A layer of these rows and columns of W [out, in] alone, with a copy of its weights, in the type of
    ``like``."""
    weight = as_linear_weight(layer).detach().to(like)[rows][:, columns]
    return plain(layer, weight, None if layer.bias is None else layer.bias.detach().to(like)[rows])


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
        seen: nn.Module,
    ) -> None:
        super().__init__(cut(seen, rows, columns, layer.weight), owner.lora, rng)
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

    def stay(self, rows: Tensor, columns: Tensor) -> None:
        """Leave other rows and columns out: what training holds is cut from the whole layer anew."""
        rows, columns = rows.to(self.rows), columns.to(self.columns)
        if not torch.equal(rows, self.rows) or not torch.equal(columns, self.columns):
            small = cut(plain(self, self.whole, self.whole_bias), rows, columns, self.weight)
            self.weight, self.bias, self.rows, self.columns = small.weight, small.bias, rows, columns
            self.lora_A = nn.Parameter(self.lora_A.new_zeros(len(self.lora_A), len(columns)))
            self.lora_B = nn.Parameter(self.lora_B.new_zeros(len(rows), self.lora_B.shape[1]))

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
