"""The files of a checkpoint that hold its weights: which they are, and whether they can
be those of its config."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from torch import nn

from trainwright.core import hardware, sharding
from trainwright.core.errors import UserError
from trainwright.core.files import expected, read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PEFT = "adapter_config.json"
HEADER = 100 << 20
"""Bytes of the table at the beginning of a safetensors file, at most."""


def weight_files(folder: Path) -> list[Path]:
    """The one file of a checkpoint's weights, or those that its index names; empty where there is none.

    Raises:
        UserError: the index is damaged, or names a file that is not there or not in the folder.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        return []
    with expected(folder / INDEX):
        names = sorted({str(name) for name in read_json(folder / INDEX)["weight_map"].values()})
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(f"{folder} lacks {name}, which its {INDEX} names.")
    return [folder / name for name in names]


def check_weights(folder: Path) -> None:
    """Refuse a folder whose weights cannot be read here, or are not all of the model."""
    if (folder / PEFT).is_file():
        raise UserError(
            f"{folder} holds an adapter of PEFT ({PEFT}), which its weights alone are not: fold it "
            "into the model with PEFT's merge_and_unload, and save that."
        )
    if not weight_files(folder):
        raise UserError(f"{folder} is no Hugging Face checkpoint (it needs config.json and "
                        f"{WEIGHTS}){_instead(folder)}.")


def _instead(folder: Path) -> str:
    """What a folder without weights holds instead, as the end of a sentence."""
    held = sorted(f.name for f in folder.iterdir()) if folder.is_dir() else []
    for ending, words in (
        (".gguf", "GGUF is read from packages alone, as package://NAME"),
        (".safetensors", f"shards need their {INDEX}"),
        (
            ".bin",
            "a pickle may run anything, and is not read: load it with transformers where you "
            "trust it, and save it again",
        ),
    ):
        if found := [name for name in held if name.endswith(ending)]:
            return f"; it has {found[0]}: {words}"
    return ""


def check_sizes(model: nn.Module, folder: Path) -> None:
    """Refuse a model (without weights) of which a rank's part does not fit into memory, before any of it is
    made.

    Where the files hold far fewer numbers than the config asks for, that is what is wrong.
    """
    wanted, there = sum(p.numel() for p in model.parameters()), hardware.memory_bytes()
    if 4 * wanted <= there * sharding.world():
        return
    held = sum(_numbers(file) for file in weight_files(folder))
    if wanted > 2 * held:
        raise UserError(
            f"{folder} has {held:,} numbers, and its config.json describes a model of {wanted:,}: they "
            "are not of one model."
        )
    raise UserError(f"the model in {folder} needs {4 * wanted / 2**30:.1f} GiB of memory in float32, and "
                    f"{there / 2**30:.1f} GiB are there.")


def _numbers(file: Path) -> int:
    """How many numbers a safetensors file holds, as its header says."""
    with expected(file), open(file, "rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        if size > HEADER:
            raise ValueError("its header is too long")
        header: dict[str, Any] = json.loads(opened.read(size))
        return sum(math.prod(t["shape"]) for name, t in header.items() if name != "__metadata__")
