"""The tensors of a checkpoint folder, read and written one at a time, or piece by piece.

Both go through plain reads and writes, not through a map of the file into memory: what was read is not held,
and nothing that was written is either, so that a checkpoint of any size needs the memory of one piece.
"""
from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from trainwright import families
from trainwright.core.errors import UserError
from trainwright.core.files import SUMS, expected
from trainwright.families import packed
from trainwright.families.libraries import PLAIN

INDEX = "model.safetensors.index.json"
OURS = ("manifest.json", SUMS, INDEX)
"""Files that belong to the checkpoint that they lie in."""
TEMPLATES = "additional_chat_templates"
COARSE = ("BF16", "F16")
"""What safetensors calls the types in which a small change of a weight is lost."""
TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
         "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
         "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}
"""The types of safetensors, as torch has them."""
WORDS = {kind: word for word, kind in TYPES.items()}
HEADER = 1 << 27
"""Bytes of the table at the beginning of a safetensors file, at most."""


class Entry(NamedTuple):
    """A tensor, without its numbers."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.numel * self.dtype.itemsize


class Reader:
    """A checkpoint in safetensors, whole or in shards; a tensor is read when it is asked for, and not kept.

    Raises:
        UserError: the folder is no plain checkpoint.
    """

    def __init__(self, folder: Path, where: str) -> None:
        families.check_folder(folder, where)
        if packed.table_of(folder) is not None:
            raise UserError(f"{where}: {folder} holds weights packed in bits, which are not added up as they "
                            "are: trainwright export makes a checkpoint with plain weights of it.")
        self._at: dict[str, tuple[Path, int]] = {}
        """Of each tensor its file, and where in it the tensor begins."""
        self._entries: dict[str, Entry] = {}
        for file in families.weight_files(folder):
            with expected(file):
                self._open(file)
        self.names = sorted(self._entries)

    def _open(self, file: Path) -> None:
        with open(file, "rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            if size > HEADER:
                raise ValueError("its header is too long")
            header: dict[str, Any] = json.loads(opened.read(size))
        length = file.stat().st_size - 8 - size
        for name, held in header.items():
            if name == "__metadata__":
                continue
            entry = Entry(name, tuple(held["shape"]), TYPES[held["dtype"]])
            start, end = held["data_offsets"]
            if not 0 <= start <= end <= length or end - start != entry.bytes:
                raise ValueError(f"{name} does not lie in it")
            self._at[name], self._entries[name] = (file, 8 + size + start), entry

    def entry(self, name: str) -> Entry:
        """Its shape and type, without reading it."""
        return self._entries[name]

    def get(self, name: str) -> Tensor:
        """The tensor of this name."""
        return self.piece(name, 0, self._entries[name].numel).view(self._entries[name].shape)

    def piece(self, name: str, start: int, stop: int) -> Tensor:
        """Its entries from ``start`` to ``stop``, the last of which is left out, as a vector."""
        entry, (file, at) = self._entries[name], self._at[name]
        made = torch.empty(min(stop, entry.numel) - start, dtype=entry.dtype)
        with open(file, "rb") as opened:
            opened.seek(at + start * entry.dtype.itemsize)
            if opened.readinto(made.view(torch.uint8).numpy()) != made.nbytes:
                raise UserError(f"{file} has become shorter while it was read.")
        return made

    def coarse(self) -> str:
        """The first type in which small changes are lost, as safetensors calls it;
        empty where there is none."""
        kinds = (WORDS[self._entries[name].dtype] for name in self.names)
        return next((kind for kind in kinds if kind in COARSE), "")

    def check_same(self, other: Reader, mine: str, theirs: str, where: str) -> None:
        """Raise a UserError unless both have the same names and shapes."""
        for name in sorted(set(self.names) ^ set(other.names)):
            raise UserError(
                f"{where}: {mine} and {theirs} are not of one architecture: only one of them has the tensor "
                f"{name}."
            )
        for name in self.names:
            a, b = list(self.entry(name).shape), list(other.entry(name).shape)
            if a != b:
                raise UserError(
                    f"{where}: {mine} and {theirs} are not of one architecture: {name} has the shapes {a} "
                    f"and {b}."
                )


class Writer:
    """safetensors in shards of at most ``most`` bytes, with the index that transformers reads.

    Args:
        entries: what will be written. ``order`` says in which order: of a shard the widest types come first,
            since a reader may ask that each number is aligned.
    """

    def __init__(self, folder: Path, entries: Sequence[Entry], most: int = 4 * 2**30) -> None:
        self.folder = folder
        self.size = sum(e.bytes for e in entries)
        self.parameters = sum(e.numel for e in entries)
        self.shards = [sorted(shard, key=lambda e: -e.dtype.itemsize) for shard in _shards(entries, most)]
        self.order = [e.name for shard in self.shards for e in shard]
        n = len(self.shards)
        self.files = ["model.safetensors"] if n == 1 else [
            f"model-{i + 1:05d}-of-{n:05d}.safetensors" for i in range(n)
        ]
        self._first = {shard[0].name: i for i, shard in enumerate(self.shards) if shard}
        self._left = {e.name: e.bytes for e in entries}
        self._file: IO[bytes] | None = None
        if not self.order:
            self._begin(0)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing stays open where it ends early."""
        if self._file is not None:
            self._file.close()

    def add(self, name: str, pieces: Iterable[Tensor]) -> None:
        """The next tensor of ``order``, in pieces that make it up one after the other."""
        if name in self._first:
            self._begin(self._first[name])
        assert self._file is not None
        for piece in pieces:
            self._left[name] -= piece.nbytes
            self._file.write(piece.contiguous().view(-1).view(torch.uint8).numpy())
        if self._left.pop(name):
            raise ValueError(f"the pieces of {name} do not make it up")

    def _begin(self, shard: int) -> None:
        if self._file is not None:
            self._file.close()
        self._file = open(self.folder / self.files[shard], "wb")  # noqa: SIM115  (closed with the shard)
        table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for e in self.shards[shard]:
            offsets = [at, at := at + e.bytes]
            table[e.name] = {"dtype": WORDS[e.dtype], "shape": list(e.shape), "data_offsets": offsets}
        header = json.dumps(table, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        self._file.write(len(header).to_bytes(8, "little") + header)

    def close(self) -> int:
        """Write the index where there is one; returns the bytes of all tensors."""
        if self._left:
            raise ValueError(f"{next(iter(self._left))} was not written")
        if self._file is not None:
            self._file.close()
        if len(self.files) > 1:
            table = {e.name: f for f, shard in zip(self.files, self.shards, strict=True) for e in shard}
            (self.folder / INDEX).write_text(
                json.dumps({"metadata": {"total_size": self.size}, "weight_map": table})
            )
        return self.size


def _shards(entries: Sequence[Entry], most: int) -> list[list[Entry]]:
    """As many in a row as fit into each file; a tensor that is larger than a file has one of its own."""
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.bytes > most:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.bytes
    return shards


def rest(folder: Path) -> list[Path]:
    """The files of a checkpoint beside its weights: config, processor, generation settings, and all files of
    its tokenizer."""
    return [
        file
        for file in sorted(folder.iterdir())
        if file.suffix in PLAIN
        and file.name not in OURS
        and file.is_file()
    ]


def same_rest(folders: Sequence[Path]) -> bool:
    """Whether checkpoints are, beside their weights, the same to the byte: then they compute the same
    function of their weights and read texts alike, and nobody need ask what the files say."""
    def held(folder: Path) -> dict[str, bytes]:
        own = rest(folder) + sorted((folder / TEMPLATES).glob("*.jinja"))
        return {file.relative_to(folder).as_posix(): file.read_bytes() for file in own}

    first, *others = (held(folder) for folder in folders)
    return all(other == first for other in others)


def copy_rest(folder: Path, out: Path) -> None:
    """Copy everything of a checkpoint beside its weights.

    Raises:
        UserError: one of these files is a link that leads elsewhere: what lies there is not the checkpoint's.
    """
    templates = sorted((folder / TEMPLATES).iterdir()) if (folder / TEMPLATES).is_dir() else []
    for file in (*rest(folder), *templates):
        if not _stays(file, folder):
            raise UserError(f"{file} is a link to a file outside of the checkpoint: put the file itself "
                            "there.")
    for file in rest(folder):
        shutil.copy(file, out / file.name)
    if templates:
        shutil.copytree(
            folder / TEMPLATES,
            out / TEMPLATES,
            ignore=lambda _, names: [n for n in names if ".jinja" not in n],
        )


def _stays(file: Path, folder: Path) -> bool:
    """Whether a file lies in a folder, or among the blobs to which the links of the Hub's cache lead."""
    place, home = file.resolve(), folder.resolve()
    blobs = home.parents[1] / "blobs" if home.parent.name == "snapshots" else home
    return place.is_relative_to(home) or place.is_relative_to(blobs)
