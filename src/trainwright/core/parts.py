"""Tensors of several ranks in a folder: safetensors files, and a plan in JSON that says what is where.

``rank-00000.safetensors`` … hold the tensors, each rank's parts of them; ``plan.json`` says of each tensor
which rank has which part. A rank reads the parts that overlap with its own, so that another number of ranks
may go on, and none of them needs more memory than for what it keeps.
"""
from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainwright.core import sharding
from trainwright.core.errors import UserError
from trainwright.core.files import read_json

FORMAT = 1
PLAN = "plan.json"
TYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
         torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int64: "I64", torch.int32: "I32",
         torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.uint16: "U16", torch.uint32: "U32",
         torch.uint64: "U64", torch.bool: "BOOL"}
"""What safetensors calls torch's types."""
MAPPED = 64 << 20
"""Bytes that are read before the files are opened anew."""


class Part(NamedTuple):
    """A block of a tensor: whose file it is in, where in the tensor it begins, and its shape."""

    rank: int
    begin: tuple[int, ...]
    shape: tuple[int, ...]


class Entry(NamedTuple):
    """A tensor in the plan."""

    type: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]


def write(folder: Path, tensors: dict[str, Tensor]) -> tuple[dict[str, Entry], str]:
    """This rank's file: what is in it, and its checksum. One tensor at a time leaves the device."""
    mine: dict[str, Tensor] = {}
    entries: dict[str, Entry] = {}
    for name, whole in tensors.items():
        t, begin = sharding.part(whole)
        if t.dtype not in TYPES:
            raise TypeError(f"{name} is of the type {t.dtype}, which cannot be saved")
        shared = t.shape == whole.shape and "/rank/" not in name                # the same on every rank
        if t.numel() == 0 < whole.numel() or (shared and not sharding.main()):
            continue
        mine[name] = t
        here = Part(sharding.rank(), tuple(begin), tuple(t.shape))
        entries[name] = Entry(str(t.dtype).removeprefix("torch."), tuple(whole.shape), (here,))
    return entries, put(folder / file_of(sharding.rank()), _blocks(mine))


def put(file: Path, blocks: Iterable[memoryview | bytes]) -> str:
    """Write a file to the disk; its checksum is taken on the way."""
    digest = hashlib.blake2b()
    with file.open("wb") as out:
        for block in blocks:
            digest.update(block)
            out.write(block)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def _blocks(tensors: dict[str, Tensor]) -> Iterator[memoryview | bytes]:
    """The bytes of a safetensors file."""
    header, at = {}, 0
    for name, t in tensors.items():
        end = at + t.numel() * t.element_size()
        header[name] = {"dtype": TYPES[t.dtype], "shape": list(t.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for t in tensors.values():
        flat = t.detach().to("cpu").contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().data if flat.numel() else b""


def file_of(rank: int) -> str:
    """The name of a rank's file."""
    return f"rank-{rank:05d}.safetensors"


def join(written: Sequence[dict[str, Entry]]) -> dict[str, Entry]:
    """The plan of what all ranks have written."""
    plan: dict[str, Entry] = {}
    for entries in written:
        for name, entry in entries.items():
            parts = (*plan[name].parts, *entry.parts) if name in plan else entry.parts
            plan[name] = entry._replace(parts=parts)
    return plan


def written_out(plan: dict[str, Entry]) -> str:
    """A plan as JSON."""
    return json.dumps({"format": FORMAT, "tensors": plan})


def plan_in(folder: Path) -> dict[str, Entry]:
    """The plan in a folder, every tensor of it whole.

    Raises:
        UserError: it is of another version.
        ValueError: or one of ``files.MISREAD``: it is none, or leaves a part of a tensor out.
    """
    told = read_json(folder / PLAN)
    if told["format"] != FORMAT:
        raise UserError(f"{folder} is of another version of Trainwright (format {told['format']}, not "
                        f"{FORMAT}).")
    plan = {}
    for name, (kind, shape, parts) in told["tensors"].items():
        cut = tuple(Part(int(r), tuple(map(int, b)), tuple(map(int, s))) for r, b, s in parts)
        plan[name] = Entry(str(kind), tuple(map(int, shape)), cut)
        if not _tiled(plan[name]):
            raise ValueError(f"the parts of {name} do not make a whole")
    return plan


def _tiled(entry: Entry) -> bool:
    """Whether the parts of a tensor lie one behind the other, along one dimension, without a gap."""
    cut = [d for d, n in enumerate(entry.shape) if any(p.shape[d] != n for p in entry.parts)]
    if len(cut) > 1 or not all(len(p.begin) == len(p.shape) == len(entry.shape) for p in entry.parts):
        return False
    if not cut:
        return len(entry.parts) == 1 and not any(entry.parts[0].begin) and min(entry.shape, default=0) >= 0
    at, (dim,) = 0, cut
    for p in sorted(entry.parts, key=lambda p: p.begin[dim]):
        if p.begin[dim] != at or p.shape[dim] < 0 or any(b for d, b in enumerate(p.begin) if d != dim):
            return False
        at += p.shape[dim]
    return at == entry.shape[dim]


def fill(path: Path, plan: dict[str, Entry], tensors: dict[str, Tensor]) -> None:
    """Give each tensor, in place, what the folder has of this rank's part of it.

    Raises:
        UserError: a tensor has another type or shape.
        ValueError: or one of ``files.MISREAD``: the files are not what the plan says.
    """
    files: dict[int, Any] = {}
    read = 0
    with ExitStack() as opened, torch.no_grad():
        for name, t in tensors.items():
            entry, (mine, begin) = plan[name], sharding.part(t)
            if entry.shape != tuple(t.shape) or getattr(torch, entry.type) != t.dtype:
                raise UserError(f"{path}: {name} is {entry.type} of shape {list(entry.shape)} in the "
                                f"checkpoint, and {t.dtype} of shape {list(t.shape)} here."
                                .replace("torch.", ""))
            for p in entry.parts:
                low = [max(a, b) for a, b in zip(begin, p.begin, strict=True)]
                high = [min(a + n, b + m) for a, n, b, m in
                        zip(begin, mine.shape, p.begin, p.shape, strict=True)]
                if any(h <= w for w, h in zip(low, high, strict=True)):
                    continue
                if p.rank not in files:
                    files[p.rank] = opened.enter_context(_opened(path / file_of(p.rank)))
                there = tuple(slice(w - b, h - b) for w, h, b in zip(low, high, p.begin, strict=True))
                here = tuple(slice(w - b, h - b) for w, h, b in zip(low, high, begin, strict=True))
                mine[here].copy_(_piece(files[p.rank], name, p, there))
                read += mine[here].numel() * mine.element_size()
                if read > MAPPED:               # what was read stays in memory while its file is open
                    opened.close()
                    files, read = {}, 0


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file.name}: {error}") from None


def _piece(file: Any, name: str, part: Part, there: tuple[slice, ...]) -> Tensor:
    """A block of a part, without reading the rest of it."""
    try:
        found = file.get_slice(name)
        if tuple(found.get_shape()) != part.shape:
            raise ValueError(f"{name} has another shape than planned")
        whole = math.prod(s.stop - s.start for s in there) == math.prod(part.shape)
        return file.get_tensor(name) if whole else found[there]  # type: ignore[no-any-return]
    except SafetensorError as error:
        raise ValueError(f"{name}: {error}") from None
