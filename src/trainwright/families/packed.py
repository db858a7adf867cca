"""Weights that are stored in few bits: the ``pack-quantized`` format of compressed-tensors (extra ``quant``).

What quantizes a layer leaves its grids with the model (``keep``). A stage that is to store bits says so
(``ask``), and the checkpoint then has, instead of a layer's ``weight``, its integers packed into 32-bit
words, scales, and zeros where a grid has them. transformers reads it; here it becomes plain float32 weights
again, so that a later stage writes an ordinary checkpoint.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainwright.core.errors import UserError
from trainwright.core.files import read_json

KEPT, ASKED = "_grids", "_to_be_packed"
"""Where a module carries its grids, and the wish that they are stored."""
TABLE, METHOD, FORMAT = "quantization_config", "compressed-tensors", "pack-quantized"
CONFIG = "config.json"
ROWS = 32
"""Outputs of a layer with zeros come in multiples of this: zeros are packed along them, and what is left over
would not be read back."""


class Grids(NamedTuple):
    """The grids of a layer: weight = scale (integer - zero)."""

    scale: Tensor
    """float32 [out, groups]."""
    zero: Tensor | None
    """[out, groups], whole numbers; None where all are zero."""
    bits: int


def keep(model: nn.Module, layer: str, grids: Grids) -> None:
    """Remember the grids on which the weights of a layer lie."""
    model.__dict__[KEPT] = model.__dict__.get(KEPT, {}) | {layer: grids}


def ask(model: nn.Module, where: str) -> None:
    """Have the weights of all layers that have grids stored in bits when the model is saved.

    Raises:
        UserError: none has grids, or the format cannot hold them.
    """
    held: dict[str, Grids] = model.__dict__.get(KEPT, {})
    if not held:
        raise UserError(f'{where}: stored = "packed" needs a method that rounds weights, such as gptq.')
    for name, grids in held.items():
        layer = model.get_submodule(name)
        if type(layer) is not nn.Linear:
            raise UserError(f'{where}: stored = "packed" holds nn.Linear alone, and {name} is '
                            f'{type(layer).__name__}: write stored = "float".')
        if grids.zero is not None and layer.out_features % ROWS:
            raise UserError(f'{where}: stored = "packed" holds asymmetric grids of layers with a multiple of '
                            f"{ROWS} outputs, and {name} has {layer.out_features}: write symmetric = true.")
        weight = layer.weight.detach().float()
        if not torch.equal(_values(weight, grids), weight):
            raise UserError(f'{where}: the weights of {name} are not on their grid any more: '
                            'write precision = "fp32", and let no other method change them.')
    sizes = {n: model.get_submodule(n).in_features for n in held}
    if len(kinds := _kinds(held, sizes)) > 1:
        first, other = list(kinds.values())[:2]
        raise UserError(f'{where}: stored = "packed" holds grids of one kind, by which transformers reads '
                        f"all of them, and those of {first} and {other} differ in bits or group_size: take "
                        'the same for all, or write stored = "float".')
    model.__dict__[ASKED] = True


def _kinds(held: dict[str, Grids], sizes: dict[str, int]) -> dict[tuple[int, bool, int], str]:
    """The kinds of grids (bits, with zeros or not, inputs that share one), each with its first layer."""
    grouped = any(g.scale.shape[1] > 1 for g in held.values())
    found: dict[tuple[int, bool, int], str] = {}
    for name, g in held.items():
        each = sizes[name] // g.scale.shape[1] if grouped else 0
        found.setdefault((g.bits, g.zero is not None, each), name)
    return found


def _values(weight: Tensor, grids: Grids) -> Tensor:
    each = weight.shape[1] // grids.scale.shape[1]
    scale = grids.scale.repeat_interleave(each, 1)
    zero = torch.zeros_like(scale) if grids.zero is None else grids.zero.float().repeat_interleave(each, 1)
    return ((weight / scale + zero).round() - zero) * scale


def check_library(where: str) -> None:
    """Refuse to go on without compressed-tensors."""
    if importlib.util.find_spec("compressed_tensors") is None:
        raise UserError(
            f"{where}: weights in bits need compressed-tensors: pip install 'trainwright[quant]'."
        )


def pack(model: nn.Module) -> dict[str, Any] | None:
    """Replace the weights of layers by their bits, in place, where that was asked for.

    Returns what the config must say of it; None where nothing was asked for.
    """
    if not model.__dict__.pop(ASKED, False):
        return None
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationConfig
    held: dict[str, Grids] = model.__dict__.pop(KEPT)
    groups: dict[str, Any] = {}
    grouped = any(g.scale.shape[1] > 1 for g in held.values())
    for name, grids in held.items():
        layer = model.get_submodule(name)
        scheme = _scheme(name, grids, layer.weight.shape[1] if grouped else 0)
        same = groups.setdefault(repr(scheme.weights), scheme)
        same.targets = sorted({*same.targets, name})
        parts = {"weight": layer.weight.detach(), "weight_scale": grids.scale}
        if grids.zero is not None:
            parts["weight_zero_point"] = grids.zero.to(torch.int8)
        made = PackedQuantizationCompressor.compress(parts, scheme)
        del layer.weight
        for part, tensor in made.items():
            layer.register_parameter(part, nn.Parameter(tensor.contiguous(), requires_grad=False))
    plain = [n for n, m in model.named_modules() if type(m) is nn.Linear and n not in held]
    made = QuantizationConfig(config_groups={f"group_{i}": s for i, s in enumerate(groups.values())},
                              format=FORMAT, ignore=plain, quantization_status="compressed")
    return made.model_dump(mode="json") | {"quant_method": METHOD}


def _scheme(name: str, grids: Grids, inputs: int) -> Any:
    """What the format calls the grids of a layer with so many inputs; 0 where no layer has groups."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    weights = QuantizationArgs(num_bits=grids.bits, symmetric=grids.zero is None,
                               strategy="group" if inputs else "channel",
                               group_size=inputs // grids.scale.shape[1] if inputs else None)
    return QuantizationScheme(targets=[name], weights=weights, format=FORMAT)


def describe(folder: Path, table: dict[str, Any]) -> None:
    """Let the config in a folder say that its weights are packed."""
    file = folder / CONFIG
    held = json.loads(file.read_text(encoding="utf-8")) | {TABLE: table}
    file.write_text(json.dumps(held, indent=2) + "\n", encoding="utf-8")


def table_of(folder: Path) -> dict[str, Any] | None:
    """What the config in a folder says of packed weights; None where they are not."""
    if not (folder / CONFIG).is_file():
        return None
    held = read_json(folder / CONFIG)
    table = held.get(TABLE) if isinstance(held, dict) else None
    return table if isinstance(table, dict) and table.get("quant_method") == METHOD else None


def take_out(config: Any) -> None:
    """Take what a config says of packed weights out of it: what is loaded here has floating-point weights."""
    table: Any = config.__dict__.get(TABLE)
    if isinstance(table, dict) and table.get("quant_method") == METHOD:
        del config.__dict__[TABLE]


def unpacking(config: Any, folder: Path) -> Any:
    """A config with which transformers makes floating-point weights of those in a folder: the same one
    where they are not packed."""
    table = table_of(folder)
    if table is None:
        return config
    check_library(str(folder))
    made = copy.deepcopy(config)
    setattr(made, TABLE, table | {"dequantize": True})
    return made


def forget(model: Any) -> None:
    """Let a model that was unpacked be an ordinary one."""
    if TABLE in model.config.__dict__:
        del model.config.__dict__[TABLE]
        model.__dict__.pop("hf_quantizer", None)
        model.__dict__.pop("quantization_method", None)
        model.__dict__.pop("is_quantized", None)


def bits_a_weight(folder: Path) -> float:
    """Bits on disk for each weight that is packed, those of scales and zeros and shapes with them."""
    from safetensors import safe_open
    bits = weights = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (safe_open is no mapping)
                if name.endswith((".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_shape")):
                    tensor = opened.get_tensor(name)
                    bits += 8 * tensor.nbytes
                    weights += int(tensor.prod()) if name.endswith("_shape") else 0
    return bits / max(1, weights)
