"""Small files of what adapters have learned: named tensors, read back into a model of the same surgery."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainwright.core.errors import UserError


def write(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Tensors under their names, each with memory of its own."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()},
        file,
        metadata={"format": "pt"},
    )


@torch.no_grad()
def read(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Fill ``tensors`` in place from the file of the same names.

    Raises:
        UserError: no such file, or other names or shapes: the delta of another model.
    """
    if not file.is_file():
        raise UserError(f"{file.parent} holds no {file.name}.")
    found = load_file(file)
    strange = sorted(found.keys() ^ tensors.keys())
    if strange:
        raise UserError(f"{file} was made of another model: only one of the two has {strange[0]}.")
    for name, tensor in tensors.items():
        if found[name].shape != tensor.shape:
            raise UserError(
                f"{file} was made of another model: {name} has the shape {list(found[name].shape)} there "
                f"and {list(tensor.shape)} here."
            )
        tensor.copy_(found[name])
