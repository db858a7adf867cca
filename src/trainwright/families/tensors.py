"""The tensors of a checkpoint folder, read and written one at a time."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

from torch import Tensor

from trainwright import families
from trainwright.core.errors import UserError
from trainwright.core.files import SUMS

INDEX = "model.safetensors.index.json"
OURS = ("manifest.json", SUMS, INDEX)
"""Files that belong to the checkpoint that they lie in."""
TEMPLATES = "additional_chat_templates"
COARSE = ("BF16", "F16")
"""What safetensors calls the types in which a small change of a weight is lost."""


class Reader:
    """A checkpoint in safetensors, whole or in shards; a tensor is read when it is asked for.

    Raises:
        UserError: the folder is no plain checkpoint.
    """

    def __init__(self, folder: Path, where: str) -> None:
        from safetensors import safe_open
        families.check_folder(folder, where)
        opened = [safe_open(f, "pt") for f in families.weight_files(folder)]
        self._file = {n: f for f in opened for n in f.keys()}  # noqa: SIM118  (safe_open is no mapping)
        self.names = sorted(self._file)

    def get(self, name: str) -> Tensor:
        """The tensor of this name."""
        return self._file[name].get_tensor(name)  # type: ignore[no-any-return]

    def shape(self, name: str) -> list[int]:
        """Its shape, without reading it."""
        return self._file[name].get_slice(name).get_shape()  # type: ignore[no-any-return]

    def coarse(self) -> str:
        """The first type in which small changes are lost, as safetensors calls it;
        empty where there is none."""
        kinds = (self._file[name].get_slice(name).get_dtype() for name in self.names)
        return next((kind for kind in kinds if kind in COARSE), "")

    def check_same(self, other: Reader, mine: str, theirs: str, where: str) -> None:
        """Raise a UserError unless both have the same names and shapes."""
        for name in sorted(set(self.names) ^ set(other.names)):
            raise UserError(
                f"{where}: {mine} and {theirs} are not of one architecture: only one of them has the tensor "
                f"{name}."
            )
        for name in self.names:
            a, b = self.shape(name), other.shape(name)
            if a != b:
                raise UserError(
                    f"{where}: {mine} and {theirs} are not of one architecture: {name} has the shapes {a} "
                    f"and {b}."
                )


class Writer:
    """safetensors in shards of at most ``most`` bytes, with the index that transformers reads."""

    def __init__(self, folder: Path, most: int = 4 * 2**30) -> None:
        self.folder, self.most = folder, most
        self.held: dict[str, Tensor] = {}
        self.shards: list[list[str]] = []
        self.bytes = self.parameters = self.size = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """The next tensor; it is on disk once its shard is full."""
        size = tensor.numel() * tensor.element_size()
        if self.held and self.bytes + size > self.most:
            self._flush()
        self.held[name] = tensor.contiguous()
        self.bytes, self.size, self.parameters = (
            self.bytes + size,
            self.size + size,
            self.parameters + tensor.numel(),
        )

    def _flush(self) -> None:
        from safetensors.torch import save_file
        save_file(self.held, self.folder / f"part-{len(self.shards)}.safetensors", metadata={"format": "pt"})
        self.shards.append(list(self.held))
        self.held, self.bytes = {}, 0

    def close(self) -> int:
        """Write the rest under final names; returns the bytes of all tensors."""
        self._flush()
        n = len(self.shards)
        final = (
            ["model.safetensors"]
            if n == 1
            else [f"model-{i + 1:05d}-of-{n:05d}.safetensors" for i in range(n)]
        )
        for i, name in enumerate(final):
            (self.folder / f"part-{i}.safetensors").rename(self.folder / name)
        if n > 1:
            table = {t: final[i] for i, names in enumerate(self.shards) for t in names}
            (self.folder / INDEX).write_text(
                json.dumps({"metadata": {"total_size": self.size}, "weight_map": table})
            )
        return self.size


def copy_rest(folder: Path, out: Path) -> None:
    """Copy everything of a checkpoint beside its weights: config, processor, generation settings, and all
    files of its tokenizer."""
    for file in sorted(folder.iterdir()):
        plain = file.suffix in (".json", ".jinja", ".model", ".txt", ".tiktoken") and file.name not in OURS
        if file.is_file() and plain:
            shutil.copy(file, out / file.name)
    if (folder / TEMPLATES).is_dir():
        shutil.copytree(
            folder / TEMPLATES,
            out / TEMPLATES,
            ignore=lambda _, names: [n for n in names if ".jinja" not in n],
        )
