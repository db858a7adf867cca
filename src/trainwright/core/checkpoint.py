"""Checkpoints of a run: written to a temporary name, checksummed, renamed. Nothing in one is ever unpickled.

The tensors lie as ``parts.py`` says, so that any number of ranks goes on from them; ``state.json`` is all the
rest, and ``checksums.json`` vouches for both.
"""
from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainwright.core import parts, registry, sharding
from trainwright.core.errors import UserError
from trainwright.core.files import SUMS, Damaged, checksum, expected, read_json, sync
from trainwright.core.held import Held, held
from trainwright.core.method import Surgery
from trainwright.core.parts import PLAN, TYPES, Entry

if TYPE_CHECKING:
    from trainwright.core.loop import Train

KEEP = 2
REST = "state.json"
STATE = "state"
"""Folder of a snapshot with the checkpoint of the run."""
REMEDY = "; remove it, and the run goes on from the one before it"


# ---- writing --------------------------------------------------------------------------------------------


def save(train: Train, folder: Path, extra: dict[str, Any]) -> Path:
    """Write ``folder/step-NNNNNNNN``; a reader never sees half of one. ``extra`` is JSON that ``load`` gives
    back.

    Raises:
        OSError: on every rank, where one of them cannot write; what was saved before stays.
    """
    final = folder / f"step-{train.ctx.step:08d}"
    part = final.with_suffix(".tmp")
    tensors = _weights(train)
    states = {key: _pack(state, f"state/{key}", tensors) for key, state in train.states.items()}
    rest = {"step": train.ctx.step, "steps": train.steps, "world": sharding.world(), "knobs": train.ctx.knobs,
            "row": train.row, "journal": [[step, surgery_table(s)] for step, s in train.journal],
            "states": _ranks(states), "ledger": train.ledger.save(), "extra": extra}
    try:
        sharding.everywhere(partial(_begin, part))
        written = sharding.everywhere(partial(parts.write, part, tensors))
        sharding.everywhere(partial(_finish, part, final, rest, written))
    except Exception:
        if sharding.main():
            shutil.rmtree(part, ignore_errors=True)
        raise
    return final


def _weights(train: Train) -> dict[str, Tensor]:
    """The model's tensors, under the names that they have in a checkpoint."""
    return held({f"model/{n}": t for n, t in train.model.state_dict().items()})


def _begin(part: Path) -> None:
    if sharding.main():
        shutil.rmtree(part, ignore_errors=True)
        part.parent.mkdir(exist_ok=True)
        part.mkdir()


def _finish(part: Path, final: Path, rest: dict[str, Any],
            written: Sequence[tuple[dict[str, Entry], str]]) -> None:
    """The plan, the JSON part and the checksums; then the name that readers look for, and the oldest
    checkpoint goes."""
    if not sharding.main():
        return
    sums = {parts.file_of(rank): digest for rank, (_, digest) in enumerate(written)}
    plan = parts.join([entries for entries, _ in written])
    for file, content in ((PLAN, parts.written_out(plan)), (REST, json.dumps(rest))):
        sums[file] = parts.put(part / file, [content.encode()])
    parts.put(part / SUMS, [json.dumps(sums).encode()])
    sync(part)
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    sync(final.parent)
    for old in sorted(final.parent.glob("step-*[0-9]"))[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


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
    with expected(path, REMEDY):
        plan = parts.plan_in(path)
        saved = _states(path, rest, train, same)
        tensors = _weights(train)
        if strange := sorted({n for n in plan if n.startswith("model/")} ^ set(tensors)):
            raise UserError(f"{path}: the checkpoint's model is not that of the recipe: only one of them has "
                            f"{strange[0].removeprefix('model/')}.")
        states = {key: _unpack(state, train, plan, tensors) for key, state in saved.items()}
        parts.fill(path, plan, tensors)
        train.ledger.load(rest["ledger"])
        knobs = {n: v for n, v in rest["knobs"].items()
                 if same or any(f"knob:{n}" in owned for owned in train.owned.values())}
    weights = {n: tensors.get(f"model/{n}", t) for n, t in train.model.state_dict().items()}
    train.model.load_state_dict({n: t for n, t in weights.items() if not isinstance(t, Held)},
                                strict=False)                          # bits are filled where they lie
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
    raise TypeError(f"the state {key} holds a {type(leaf).__name__}; states hold tensors, numbers, strings, "
                    "lists and tables")


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
