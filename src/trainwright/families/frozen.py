"""Frozen weights in four bits: what a stage with ``frozen = "nf4"`` or ``"int4"`` holds of the matrices that
it does not train.

"QLoRA: Efficient Finetuning of Quantized LLMs" (arXiv 2305.14314). A matrix W, flattened row by row, is cut
into blocks of 64 weights. Of each block the largest size a = max |w| is kept, and of each weight the nearest
entry of a table T of 16 numbers:

    w' = a T[q],    q = argmin_k |w / a - T_k|.

``nf4`` has the table of the paper's appendix E, the quantiles of a normal distribution with an exact zero;
``int4`` the numbers -8 to 7, divided by 7.5. The sizes a are stored in a second step (double quantization):
their mean is taken off, and what is left of 256 of them shares one float32 scale and has 8-bit floats
(float8_e4m3fn; the bitsandbytes library has a table of its own there). A weight takes
4 + 8/64 + 32/(64 * 256) = 4.13 bits. Zeros stay zeros.

The tensor that holds them is a ``FourBits``, used as ``families/bits.py`` says.
"""
from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.core.errors import UserError
from trainwright.core.held import Hold, held
from trainwright.families.bits import Bits
from trainwright.families.frozen_tables import freeze_tables

Frozen = Literal["whole", "nf4", "int4"]
"""How frozen matrices of the blocks are held: as they are, or in four bits."""
Tables = Literal["whole", "int8"]
"""The same of embeddings and head, see ``families/frozen_tables.py``."""
BLOCK, GROUP = 64, 256
"""Weights that share a size; sizes that share a scale."""
NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
       -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
       0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
       1.0)
"""The table of the paper's appendix E, as its authors' library bitsandbytes has it."""
TABLES = {"nf4": NF4, "int4": tuple(k / 7.5 for k in range(-8, 8))}
TOP = torch.finfo(torch.float8_e4m3fn).max


class Sizes(NamedTuple):
    """The largest size of each block, in 8 bits."""

    codes: Tensor
    """float8_e4m3fn [blocks], what the sizes differ from their mean, over the scale of their group."""
    scales: Tensor
    """float32 [groups]."""
    mean: Tensor
    """float32 [1]."""


class FourBits(Bits):
    """A frozen matrix in four bits. See ``pack``."""

    codes: Tensor
    """uint8 [weights / 2], the earlier weight in the higher half."""
    sizes: Sizes
    table: str
    many: ClassVar[str] = "four"
    setting: ClassVar[str] = "frozen"

    @staticmethod
    def __new__(cls, codes: Tensor, sizes: Sizes, table: str, shape: torch.Size, dtype: torch.dtype,
                turned: bool = False) -> FourBits:
        made: FourBits = Tensor._make_wrapper_subclass(
            cls, shape, dtype=dtype, device=codes.device, requires_grad=False)
        made.codes, made.sizes, made.table, made.turned = codes, sizes, table, turned
        return made

    def __init__(self, *given: Any) -> None:
        super().__init__()

    def like(self, dtype: torch.dtype | None = None, turn: bool = False) -> FourBits:
        shape = torch.Size(reversed(self.shape)) if turn else self.shape
        return FourBits(self.codes, self.sizes, self.table, shape, dtype or self.dtype, self.turned ^ turn)

    def held(self) -> dict[str, Tensor]:
        return {"codes": self.codes, "sizes": self.sizes.codes, "scales": self.sizes.scales,
                "mean": self.sizes.mean}

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        kind, sizes = dtype or self.dtype, self.sizes
        groups = torch.arange(len(sizes.codes), device=self.device) // GROUP
        largest = sizes.codes.float() * sizes.scales[groups] + sizes.mean
        pairs = _pairs(self.table, self.device)
        values = pairs.index_select(0, self.codes.int()).view(-1, BLOCK).mul_(largest[:, None])
        shape = torch.Size(reversed(self.shape)) if self.turned else self.shape
        whole = values.view(-1)[:shape.numel()].view(shape).to(kind)
        return whole.t() if self.turned else whole

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"FourBits({list(self.shape)}, {self.table})"


def pack(weight: Tensor, table: str) -> FourBits:
    """A matrix in four bits, with a table of ``TABLES``."""
    flat = weight.detach().float().reshape(-1)
    blocks = nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    largest = blocks.abs().amax(1)
    ratio = blocks / torch.where(largest > 0, largest, 1)[:, None]
    numbers = torch.tensor(TABLES[table], device=flat.device)
    nearest = torch.bucketize(ratio, (numbers[1:] + numbers[:-1]) / 2).to(torch.uint8).view(-1)
    codes = nearest[0::2] << 4 | nearest[1::2]
    return FourBits(codes, _sizes(largest), table, weight.shape, weight.dtype)


def _sizes(largest: Tensor) -> Sizes:
    mean = largest.mean().view(1)
    left = nn.functional.pad(largest - mean, (0, -len(largest) % GROUP)).view(-1, GROUP)
    scales = left.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / TOP
    codes = (left / scales[:, None]).clamp(-TOP, TOP).to(torch.float8_e4m3fn)
    return Sizes(codes.view(-1)[:len(largest)].clone(), scales, mean)


class _Known:
    """The two numbers that each byte stands for, by table and device."""

    pairs: ClassVar[dict[tuple[str, torch.device], Tensor]] = {}


def _pairs(table: str, device: torch.device) -> Tensor:
    if (table, device) not in _Known.pairs:
        numbers = torch.tensor(TABLES[table], device=device)
        _Known.pairs[table, device] = torch.cartesian_prod(numbers, numbers)
    return _Known.pairs[table, device]


# ---- models --------------------------------------------------------------------------------------------


def holding(how: Frozen, tables: Tables) -> Hold | None:
    """What a stage's ``frozen`` and ``frozen_tables`` ask for; None for weights as they are."""
    return None if how == tables == "whole" else partial(_hold, how=how, tables=tables)


def _hold(model: nn.Module, how: Frozen, tables: Tables) -> None:
    if how != "whole":
        freeze(model, how)
    if tables != "whole":
        freeze_tables(model)


@torch.no_grad()
def freeze(model: nn.Module, table: str) -> None:
    """Hold the frozen weights of the linear layers in the model's blocks in four bits, in place.

    Raises:
        UserError: there are none: everything is trained.
    """
    found = list(_frozen(model))
    if not found:
        raise UserError(f'frozen = "{table}" is about weights that are not trained, and here all those of '
                        "the blocks are: name an adapter, such as lora, or leave it out.")
    for module in found:
        weight: Any = module.weight
        # of a model that will be cut into shards, each matrix moves alone
        bits = pack(weight.to(sharding.device()) if sharding.world() > 1 else weight, table)
        module._parameters["weight"] = nn.Parameter(bits, requires_grad=False)


def _frozen(model: nn.Module) -> list[nn.Module]:
    """The modules in repeated blocks with a matrix that is not trained and belongs to no other module."""
    lists = [m for m in model.modules() if isinstance(m, (nn.ModuleList, nn.ModuleDict))]
    inside = {id(m): m for one in lists for m in one.modules() if not isinstance(m, nn.Embedding)}
    uses: dict[int, int] = {}
    for _, p in model.named_parameters(remove_duplicate=False):
        uses[id(p)] = uses.get(id(p), 0) + 1
    weights = [(m, m._parameters.get("weight")) for m in inside.values()]
    return [m for m, w in weights if w is not None and w.ndim == 2 and not w.requires_grad
            and w.is_floating_point() and uses[id(w)] == 1]


@torch.no_grad()
def thaw(model: nn.Module) -> None:
    """Give the model the weights that its bits stand for, as ordinary parameters, in place; what is tied
    stays tied."""
    thawed: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if isinstance(p, Bits):
                if id(p) not in thawed:
                    thawed[id(p)] = nn.Parameter(p.dense(), requires_grad=False)
                module._parameters[name] = thawed[id(p)]


def weight_bytes(model: nn.Module) -> int:
    """Bytes in which a model's parameters are held."""
    return sum(t.numel() * t.element_size() for t in held(dict(model.named_parameters())).values())
