"""Checkpoints of a run: written to a temporary name, checksummed, renamed; tensors through DCP, the rest as JSON."""
from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from trainwright.core import registry, sharding
from trainwright.core.errors import UserError
from trainwright.core.method import Surgery

if TYPE_CHECKING:
    from trainwright.core.loop import Train

KEEP = 2


def save(train: Train, folder: Path, extra: dict[str, Any]) -> Path:
    """Write ``folder/step-NNNNNNNN``; a reader never sees half of one. ``extra`` is JSON that ``load`` gives back."""
    final = folder / f"step-{train.ctx.step:08d}"
    part = final.with_suffix(".tmp")
    tensors: dict[str, Tensor] = {f"model/{n}": t for n, t in train.model.state_dict().items()}
    states = {key: _pack(state, f"state/{key}", tensors) for key, state in train.states.items()}
    rest = {"step": train.ctx.step, "steps": train.steps, "world": sharding.world(), "knobs": train.ctx.knobs, "row": train.row,
            "journal": [[step, surgery_table(s)] for step, s in train.journal], "states": _ranks(states),
            "ledger": train.ledger.save(), "extra": extra}
    if sharding.main():
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    sharding.barrier()
    try:
        with _alone():
            dcp_save(tensors, checkpoint_id=part, no_dist=sharding.world() == 1)
        if sharding.main():
            _finish(part, final, rest)
    except OSError:
        shutil.rmtree(part, ignore_errors=True)                            # a full disk: what was saved before stays
        raise
    sharding.barrier()
    return final


def _finish(part: Path, final: Path, rest: dict[str, Any]) -> None:
    """The JSON part and the checksums; then the name that readers look for, and the oldest checkpoint goes."""
    (part / "state.json").write_text(json.dumps(rest))
    files = sorted(f for f in part.iterdir() if f.is_file())
    (part / "checksums.json").write_text(json.dumps({f.name: checksum(f) for f in files}))
    for f in [*files, part / "checksums.json", part]:
        _sync(f)
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    _sync(final.parent)
    for old in sorted(final.parent.glob("step-*[0-9]"))[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def newest(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint that is whole, and the damaged ones that were passed over."""
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
    """Whether every file of a checkpoint is what was written."""
    try:
        sums = json.loads((path / "checksums.json").read_text())
        return bool(sums) and all(checksum(path / name) == value for name, value in sums.items())
    except (OSError, ValueError, AttributeError):
        return False


def read(path: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint: step, knobs, journal, the shape of the states."""
    rest: dict[str, Any] = json.loads((path / "state.json").read_text())
    return rest


def journal_of(rest: dict[str, Any], root: Path) -> list[tuple[int, Surgery]]:
    """The surgeries performed during the run, made anew from their settings."""
    out = []
    for step, table in rest["journal"]:
        surgery = registry.create(table, root, "the checkpoint's journal")
        assert isinstance(surgery, Surgery)
        out.append((step, surgery))
    return out


def load_into(train: Train, path: Path, rest: dict[str, Any], same: bool = True) -> None:
    """Continue ``train`` (built, journal replayed) from a checkpoint.

    Args:
        same: the methods must be those of the checkpoint. Where not, those that are new begin here, and what those that are
            gone remembered, and the knobs that they had set, are gone too; surgeries must be the same all the same.

    Raises:
        UserError: the recipe's methods are not those of the checkpoint, or a method's state belongs to single ranks
            and their number has changed.
    """
    saved: dict[str, Any] = rest["states"][sharding.rank() if rest["world"] == sharding.world() else 0]
    if not same:
        saved = {key: saved[key] for key in train.states if key in saved}
    elif list(saved) != list(train.states):
        raise UserError(f"{path}: the checkpoint has the methods {', '.join(saved)}; the recipe has {', '.join(train.states)}.")
    for key, state in saved.items():
        if state.get("rank") and rest["world"] != sharding.world():
            raise UserError(f"{path}: {key} keeps state of its own on each rank; "
                            f"go on with {rest['world']} ranks, not {sharding.world()}.")
    tensors: dict[str, Tensor] = {f"model/{n}": t for n, t in train.model.state_dict().items()}
    states = {key: _unpack(state, train, tensors) for key, state in saved.items()}
    with _alone():
        dcp_load(tensors, checkpoint_id=path, no_dist=sharding.world() == 1)
    train.model.load_state_dict({n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")})
    train.states |= states
    knobs = {n: v for n, v in rest["knobs"].items() if same or any(f"knob:{n}" in owned for owned in train.owned.values())}
    train.ctx.step, train.ctx.knobs, train.row = rest["step"], train.ctx.knobs | knobs, rest["row"]
    train.evaluation = {n.removeprefix("eval/"): v for n, v in train.row.items() if n.startswith("eval/")}
    train.ledger.load(rest["ledger"])


def surgery_table(surgery: Surgery) -> dict[str, Any]:
    """A surgery as a recipe would write it."""
    return {"use": registry.use_of(surgery), **dataclasses.asdict(surgery)}


def checksum(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "blake2b").hexdigest()


def _pack(leaf: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    """JSON of a state; its tensors go to ``tensors`` and leave their shape and dtype behind."""
    if isinstance(leaf, Tensor):
        own = "/rank/" in key
        name = f"{key}@{sharding.rank()}" if own else key
        tensors[name] = leaf
        parameter = key.split("/param/", 1)[1].rpartition("/")[0] if "/param/" in key else ""
        return {"$tensor": name, "shape": list(leaf.shape), "dtype": str(leaf.dtype).removeprefix("torch."), "like": parameter}
    if isinstance(leaf, dict):
        return {k: _pack(v, f"{key}/{k}", tensors) for k, v in leaf.items()}
    if isinstance(leaf, (list, tuple)):
        return [_pack(v, f"{key}/{i}", tensors) for i, v in enumerate(leaf)]
    if leaf is None or isinstance(leaf, (bool, int, float, str)):
        return leaf
    raise TypeError(f"the state {key} holds a {type(leaf).__name__}; states hold tensors, numbers, strings, lists and tables")


def _unpack(saved: Any, train: Train, tensors: dict[str, Tensor]) -> Any:
    if isinstance(saved, dict) and "$tensor" in saved:
        like = train.params.get(saved["like"])
        device = like.device if like is not None else train.ctx.device
        empty = torch.empty(saved["shape"], dtype=getattr(torch, saved["dtype"]), device=device)
        tensors[saved["$tensor"]] = t = sharding.like(empty, like) if like is not None else empty
        return t
    if isinstance(saved, dict):
        return {k: _unpack(v, train, tensors) for k, v in saved.items()}
    return [_unpack(v, train, tensors) for v in saved] if isinstance(saved, list) else saved


def _ranks(states: dict[str, Any]) -> list[dict[str, Any]]:
    """States by rank: all of them where one keeps something of its own, else rank 0's."""
    if any(s.get("rank") for s in states.values()):
        return sharding.gather(states)
    return [states] * sharding.world()


@contextmanager
def _alone() -> Iterator[None]:
    """DCP warns that a lone process has no process group, which is so by intent; and wraps the errors of files."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            yield
        except CheckpointException as error:
            causes = [cause for cause, _ in error.failures.values()]
            raise next((c for c in causes if isinstance(c, OSError)), causes[0]) from None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
