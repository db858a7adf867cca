"""Weights that stay zero: the mask of a pruned model, which goes with it and which
every later stage respects.

A mask belongs to a parameter, has its shape, and is true where a weight is kept. It lies beside the
weights as one bit an entry.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from trainwright.core import sharding

FILE = "masks.safetensors"
KEPT = "_masks"
"""Where a module carries its masks."""


def keep(model: nn.Module, name: str, mask: Tensor) -> None:
    """From now on the entries of a parameter where ``mask`` (bool, of its shape) is false are zero, in this
    model and in what is made of it. Masks of one parameter add up: what one of them removes is gone."""
    parameter = model.get_parameter(name)
    if mask.shape != parameter.shape or mask.dtype != torch.bool:
        raise TypeError(
            f"the mask of {name} is {mask.dtype} {tuple(mask.shape)}; it must be bool "
            f"{tuple(parameter.shape)}"
        )
    held = of(model)
    model.__dict__[KEPT] = held | {name: held[name] & mask if name in held else mask}
    with torch.no_grad():
        sharding.local(parameter).masked_fill_(sharding.local(sharding.like(~mask, parameter)), 0)


def of(model: nn.Module) -> dict[str, Tensor]:
    """The masks of a model by parameter; empty where it has none."""
    held: dict[str, Tensor] = model.__dict__.get(KEPT, {})
    return held


@torch.no_grad()
def enforce(model: nn.Module) -> int:
    """Set to zero what the masks remove; returns how many entries were not."""
    count = 0
    for name, mask in of(model).items():
        parameter = model.get_parameter(name)
        count += int(((parameter != 0) & ~mask).sum())
        parameter.masked_fill_(~mask, 0)
    return count


def write(model: nn.Module, folder: Path) -> None:
    """Write ``FILE`` where the model has masks."""
    from safetensors.torch import save_file
    masks = of(model)
    if masks:
        packed = {n: torch.from_numpy(np.packbits(m.cpu().numpy().reshape(-1))) for n, m in masks.items()}
        shapes = {n: list(m.shape) for n, m in masks.items()}
        save_file(packed, folder / FILE, metadata={"shapes": json.dumps(shapes, sort_keys=True)})


def read(model: nn.Module, folder: Path) -> None:
    """Give a loaded model the masks that lie beside its weights."""
    from safetensors import safe_open
    if not (folder / FILE).is_file():
        return
    with safe_open(folder / FILE, "pt") as file:
        shapes = json.loads(file.metadata()["shapes"])
        for name in file.keys():  # noqa: SIM118  (safe_open is no mapping)
            shape = tuple(shapes[name])
            bits = np.unpackbits(file.get_tensor(name).numpy(), count=int(np.prod(shape)))
            keep(
                model,
                name,
                torch.from_numpy(bits.reshape(shape).astype(bool)).to(model.get_parameter(name).device),
            )
