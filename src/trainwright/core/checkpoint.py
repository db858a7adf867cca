"""Checkpoints of a run: written to a temporary name, checksummed, renamed. Nothing in one is ever unpickled.

``rank-00000.safetensors`` … hold the tensors, each rank's parts of them; ``plan.json`` says of each tensor which
rank has which part; ``state.json`` is all the rest. A rank reads the parts that overlap with its own, so that
another number of ranks may go on, and none of them needs more memory than for what it keeps.
"""
from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainwright.core import registry, sharding
from trainwright.core.errors import UserError
from trainwright.core.files import SUMS, Damaged, checksum, expected, read_json, sync
from trainwright.core.method import Surgery

if TYPE_CHECKING:
    from trainwright.core.loop import Train

KEEP = 2
FORMAT = 1
PLAN, REST = "plan.json", "state.json"
TYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
         torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int64: "I64", torch.int32: "I32",
         torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.uint16: "U16", torch.uint32: "U32",
         torch.uint64: "U64", torch.bool: "BOOL"}
"""What safetensors calls torch's types."""
REMEDY = "; remove it, and the run goes on from the one before it"


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


# ---- writing --------------------------------------------------------------------------------------------


def save(train: Train, folder: Path, extra: dict[str, Any]) -> Path:
    """Write ``folder/step-NNNNNNNN``; a reader never sees half of one. ``extra`` is JSON that ``load`` gives
    back.

    Raises:
        OSError: on every rank, where one of them cannot write; what was saved before stays.
    """
    final = folder / f"step-{train.ctx.step:08d}"
    part = final.with_suffix(".tmp")
    tensors: dict[str, Tensor] = {f"model/{n}": t for n, t in train.model.state_dict().items()}
    states = {key: _pack(state, f"state/{key}", tensors) for key, state in train.states.items()}
    rest = {"step": train.ctx.step, "steps": train.steps, "world": sharding.world(), "knobs": train.ctx.knobs,
            "row": train.row, "journal": [[step, surgery_table(s)] for step, s in train.journal],
            "states": _ranks(states), "ledger": train.ledger.save(), "extra": extra}
    try:
        sharding.everywhere(partial(_begin, part))
        written = sharding.everywhere(partial(_write, part, tensors))
        sharding.everywhere(partial(_finish, part, final, rest, written))
    except Exception:
        if sharding.main():
            shutil.rmtree(part, ignore_errors=True)
        raise
    return final


def _begin(part: Path) -> None:
    if sharding.main():
        shutil.rmtree(part, ignore_errors=True)
        part.parent.mkdir(exist_ok=True)
        part.mkdir()


def _write(part: Path, tensors: dict[str, Tensor]) -> tuple[dict[str, Entry], str]:
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
    return entries, _put(part / _file(sharding.rank()), _blocks(mine))


def _put(file: Path, blocks: Iterable[memoryview | bytes]) -> str:
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


def _finish(part: Path, final: Path, rest: dict[str, Any],
            written: Sequence[tuple[dict[str, Entry], str]]) -> None:
    """The plan, the JSON part and the checksums; then the name that readers look for, and the oldest
    checkpoint goes."""
    if not sharding.main():
        return
    plan: dict[str, Entry] = {}
    for entries, _ in written:
        for name, entry in entries.items():
            parts = (*plan[name].parts, *entry.parts) if name in plan else entry.parts
            plan[name] = entry._replace(parts=parts)
    sums = {_file(rank): digest for rank, (_, digest) in enumerate(written)}
    for file, content in ((PLAN, {"format": FORMAT, "tensors": plan}), (REST, rest)):
        sums[file] = _put(part / file, [json.dumps(content).encode()])
    _put(part / SUMS, [json.dumps(sums).encode()])
    sync(part)
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    sync(final.parent)
    for old in sorted(final.parent.glob("step-*[0-9]"))[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def _file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


# ---- reading --------------------------------------------------------------------------------------------


def newest(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint that is whole, and the damaged ones that were skipped."""
    if not sharding.main():
        return sharding.together(None)  # type: ignore[no-any-return]
    damaged: list[Path] = []
    found: Path | None = None
    for path in sorted(folder.glob("step-*[0-9]"), reverse=True):
        if whole(path):
            found = path
            break
        damaged.append(path)
    for part in folder.glob("step-*.tmp"):
        shutil.rmtree(part, ignore_errors=True)
    return sharding.together((found, damaged))  # type: ignore[no-any-return]


def whole(path: Path) -> bool:
    """Whether a checkpoint has the files that were written, and each is as it was."""
    try:
        sums = read_json(path / SUMS)
        there = {f.name for f in path.iterdir()} - {SUMS}
        return {PLAN, REST} <= set(sums) == there and all(checksum(path / n) == sums[n] for n in there)
    except (OSError, TypeError, Damaged):
        return False


def read(path: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint: step, knobs, journal, the shape of the states."""
    with expected(path, REMEDY):
        rest: dict[str, Any] = read_json(path / REST)
        kinds = {"step": int, "world": int, "knobs": dict, "row": dict, "journal": list, "states": list,
                 "ledger": dict}
        for key, kind in kinds.items():
            if not isinstance(rest[key], kind):
                raise TypeError(f"{key} is no {kind.__name__}")
        return rest


def journal_of(rest: dict[str, Any]) -> list[tuple[int, Surgery]]:
    """The surgeries performed during the run, made anew from their settings."""
    where = "the checkpoint's journal"
    with expected(Path(where)):
        return [(int(step), surgery_from(table, where)) for step, table in rest["journal"]]


def surgery_from(table: Any, where: str) -> Surgery:
    """A surgery from ``surgery_table``, as a folder keeps it: the folder runs nothing.

    Raises:
        UserError: it is no surgery, or one of a file that no recipe has named.
    """
    surgery = registry.recall(table, where)
    if not isinstance(surgery, Surgery):
        raise UserError(f"{where}: {surgery.name} is no Surgery.")
    return surgery


def load_into(train: Train, path: Path, rest: dict[str, Any], same: bool = True) -> None:
    """Continue ``train`` (built, journal replayed) from a checkpoint.

    Args:
        same: the methods must be those of the checkpoint. Where not, those that are new begin here, and what
            those that are gone remembered, and the knobs that they had set, are gone too; surgeries must be
            the same all the same.

    Raises:
        UserError: the recipe's methods are not those of the checkpoint, a method's state belongs to single
            ranks and their number has changed, or the checkpoint is damaged.
    """
    plan = _plan(path)
    with expected(path, REMEDY):
        saved = _states(path, rest, train, same)
        tensors: dict[str, Tensor] = {f"model/{n}": t for n, t in train.model.state_dict().items()}
        if strange := sorted({n for n in plan if n.startswith("model/")} ^ set(tensors)):
            raise UserError(f"{path}: the checkpoint's model is not that of the recipe: only one of them has "
                            f"{strange[0].removeprefix('model/')}.")
        states = {key: _unpack(state, train, plan, tensors) for key, state in saved.items()}
        _fill(path, plan, tensors)
        train.ledger.load(rest["ledger"])
        knobs = {n: v for n, v in rest["knobs"].items()
                 if same or any(f"knob:{n}" in owned for owned in train.owned.values())}
    train.model.load_state_dict({n.removeprefix("model/"): t for n, t in tensors.items()
                                 if n.startswith("model/")})
    train.states |= states
    train.ctx.step, train.ctx.knobs, train.row = rest["step"], train.ctx.knobs | knobs, rest["row"]
    train.evaluation = {n.removeprefix("eval/"): v for n, v in train.row.items() if n.startswith("eval/")}


def _states(path: Path, rest: dict[str, Any], train: Train, same: bool) -> dict[str, dict[str, Any]]:
    """What the methods of ``train`` remembered on this rank, as JSON."""
    world = rest["world"]
    saved: dict[str, dict[str, Any]] = rest["states"][sharding.rank() if world == sharding.world() else 0]
    if not same:
        saved = {key: saved[key] for key in train.states if key in saved}
    elif list(saved) != list(train.states):
        raise UserError(f"{path}: the checkpoint has the methods {', '.join(saved)}; the recipe has "
                        f"{', '.join(train.states)}.")
    for key, state in saved.items():
        if state.get("rank") and world != sharding.world():
            raise UserError(f"{path}: {key} keeps state of its own on each rank; "
                            f"go on with {world} ranks, not {sharding.world()}.")
    return saved


def _plan(path: Path) -> dict[str, Entry]:
    """The plan of a checkpoint, every tensor of it whole."""
    with expected(path, REMEDY):
        told = read_json(path / PLAN)
        if told["format"] != FORMAT:
            raise UserError(f"{path} is of another version of Trainwright (format {told['format']}, not {FORMAT}).")
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


def _fill(path: Path, plan: dict[str, Entry], tensors: dict[str, Tensor]) -> None:
    """Give each tensor, in place, what the checkpoint has of this rank's part of it."""
    files: dict[int, Any] = {}
    with ExitStack() as opened, torch.no_grad():
        for name, t in tensors.items():
            entry, (mine, begin) = plan[name], sharding.part(t)
            if entry.shape != tuple(t.shape) or getattr(torch, entry.type) != t.dtype:
                raise UserError(f"{path}: {name} is {entry.type} of shape {list(entry.shape)} in the checkpoint, and "
                                f"{t.dtype} of shape {list(t.shape)} here.".replace("torch.", ""))
            for p in entry.parts:
                low = [max(a, b) for a, b in zip(begin, p.begin, strict=True)]
                high = [min(a + n, b + m) for a, n, b, m in
                        zip(begin, mine.shape, p.begin, p.shape, strict=True)]
                if any(h <= w for w, h in zip(low, high, strict=True)):
                    continue
                if p.rank not in files:
                    files[p.rank] = opened.enter_context(_opened(path / _file(p.rank)))
                there = tuple(slice(w - b, h - b) for w, h, b in zip(low, high, p.begin, strict=True))
                here = tuple(slice(w - b, h - b) for w, h, b in zip(low, high, begin, strict=True))
                mine[here].copy_(_piece(files[p.rank], name, p, there))


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


# ---- states ---------------------------------------------------------------------------------------------


def surgery_table(surgery: Surgery) -> dict[str, Any]:
    """A surgery as a recipe would write it."""
    return {"use": registry.use_of(surgery), **dataclasses.asdict(surgery)}


def _pack(leaf: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    """JSON of a state; its tensors go to ``tensors`` and leave their shape and dtype behind."""
    if isinstance(leaf, Tensor):
        own = "/rank/" in key
        name = f"{key}@{sharding.rank()}" if own else key
        tensors[name] = leaf
        parameter = key.split("/param/", 1)[1].rpartition("/")[0] if "/param/" in key else ""
        return {"$tensor": name, "like": parameter}
    if isinstance(leaf, dict):
        return {k: _pack(v, f"{key}/{k}", tensors) for k, v in leaf.items()}
    if isinstance(leaf, (list, tuple)):
        return [_pack(v, f"{key}/{i}", tensors) for i, v in enumerate(leaf)]
    if leaf is None or isinstance(leaf, (bool, int, float, str)):
        return leaf
    raise TypeError(f"the state {key} holds a {type(leaf).__name__}; states hold tensors, numbers, strings, lists "
                    "and tables")


def _unpack(saved: Any, train: Train, plan: dict[str, Entry], tensors: dict[str, Tensor]) -> Any:
    """The state of that JSON, its tensors still empty; they are noted in ``tensors``."""
    if isinstance(saved, dict) and "$tensor" in saved:
        entry, like = plan[saved["$tensor"]], train.params.get(saved["like"])
        device = like.device if like is not None else train.ctx.device
        kind = getattr(torch, entry.type)
        if kind not in TYPES:
            raise ValueError(f"{entry.type} is no type")
        t = sharding.empty(entry.shape, kind, device, like)
        tensors[saved["$tensor"]] = t
        return t
    if isinstance(saved, dict):
        return {k: _unpack(v, train, plan, tensors) for k, v in saved.items()}
    return [_unpack(v, train, plan, tensors) for v in saved] if isinstance(saved, list) else saved


def _ranks(states: dict[str, Any]) -> list[dict[str, Any]]:
    """States by rank: all of them where one keeps something of its own, else rank 0's."""
    if any(s.get("rank") for s in states.values()):
        return sharding.gather(states)
    return [states] * sharding.world()
