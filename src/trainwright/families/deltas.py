"""What surgeries leave when a stage ends: a plain checkpoint, deltas beside it, and a way to put them back.

A surgery that can be folded in ends as a plain checkpoint of transformers, and its delta is a small file for
those who keep the original. One that cannot (``folds = False``: a network beside the model) is taken out
again. Then the plain checkpoint, which alone is another function, lies in ``backbone/``, where no reader
takes it for the whole, and ``families.load`` puts the delta back. Where it is no model by itself, its config
is called ``part.json`` there, under which name no other reader takes it for a checkpoint.
"""
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainwright.core import checkpoint, hardware, masks
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.files import expected, read_json
from trainwright.core.method import Surgery
from trainwright.families import frozen
from trainwright.families.base import made_from, skeleton
from trainwright.families.checkpoints import BACKBONE, save
from trainwright.families.configs import CONFIG, PART
from trainwright.families.libraries import first_line
from trainwright.families.tokenizers import stop_at

TABLE = "surgery.json"
"""Beside a delta: the surgery's settings, the seed it was performed with, and whether it was folded in."""
CARRIED = "_carried"
"""Where a model keeps the surgeries that it was loaded with, each with its seed."""


def carried(model: nn.Module) -> list[tuple[Surgery, int]]:
    """Surgeries that are part of a loaded model, since they could not be folded in when it was saved."""
    kept: list[tuple[Surgery, int]] = model.__dict__.get(CARRIED, [])
    return kept


def write(model: nn.Module, performed: Sequence[Surgery], seed: int, out: Path, tokenizer: Any) -> list[str]:
    """Save the deltas, undo the surgeries, the last one first, and save what is left: the plain model.
    Weights that are frozen in four bits are those that the bits stand for, as they were in training.

    Returns the names of the surgeries that could not be folded in.
    """
    chain = [*carried(model), *((s, seed) for s in performed)]
    model.__dict__.pop(CARRIED, None)
    frozen.thaw(model)
    for i, (surgery, seed_then) in reversed(list(enumerate(chain, 1))):
        folder = out / f"adapter-{i}"
        surgery.save_delta(model, folder)
        if folder.is_dir():
            _describe(folder, surgery, seed_then, i)
        elif not surgery.folds:
            raise TypeError(f"{surgery.name} does not fold and saves no delta: what it learned would be lost")
        surgery.fold(model)
    written = list(out.glob("adapter-*"))
    if len(written) == 1:
        written[0].rename(out / "adapter")
    masks.enforce(model)
    stop_at(model, tokenizer)
    kept = [s.name for s, _ in chain if not s.folds]
    save(model, out / BACKBONE if kept else out, None if kept else tokenizer)
    if not all(s.stands_alone for s, _ in chain if not s.folds) and (out / BACKBONE / CONFIG).is_file():
        (out / BACKBONE / CONFIG).rename(out / BACKBONE / PART)
    if kept and tokenizer is not None:
        tokenizer.save_pretrained(out)
    return kept


def _describe(folder: Path, surgery: Surgery, seed: int, order: int) -> None:
    table = {"surgery": checkpoint.surgery_table(surgery), "seed": seed, "folded": surgery.folds,
             "order": order}
    (folder / TABLE).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def put(model: nn.Module, folder: Path) -> Surgery:
    """Perform a delta's surgery on the original model, in place, and give it what it had learned.

    Raises:
        UserError: ``folder`` holds no delta, one of another model, of a method that reads no deltas, or of a
            file that no recipe in hand has named.
    """
    surgery, seed = _read(folder)
    if type(surgery).load_delta is Surgery.load_delta:
        raise UserError(f"{folder}: the method {surgery.name} has no load_delta, so that its delta cannot be "
                        "put back here.")
    surgery.operate(model, Context(seed=seed, device=next(model.parameters()).device))
    surgery.load_delta(model, folder)
    return surgery


def _read(folder: Path) -> tuple[Surgery, int]:
    table = _table(folder)
    with expected(folder / TABLE):
        return checkpoint.surgery_from(table["surgery"], str(folder)), int(table["seed"])


def _table(folder: Path) -> dict[str, Any]:
    try:
        table: dict[str, Any] = read_json(folder / TABLE)
    except FileNotFoundError:
        raise UserError(f"{folder} holds no delta (it needs {TABLE}).") from None
    return table


def put_back(model: nn.Module, artifact: Path) -> None:
    """Give the plain model of an artifact, in place, what could not be folded into it, in the order of then.
    """
    found = []
    for file in sorted(artifact.glob(f"adapter*/{TABLE}")):
        table = _table(file.parent)
        with expected(file):
            if not table["folded"]:
                found.append((int(table["order"]), int(table["seed"]), file.parent))
    folders = [folder for _, _, folder in sorted(found)]
    _check_sizes(model, folders)
    model.__dict__[CARRIED] = [(put(model, folder), seed) for _, seed, folder in sorted(found)]


def _check_sizes(model: nn.Module, folders: Sequence[Path]) -> None:
    """Refuse surgeries that would put more into a model than fits into memory, before any is performed."""
    if not folders:
        return
    plain = skeleton(made_from(model), str(folders[0]))
    before = sum(p.numel() for p in plain.parameters())
    for folder in folders:
        surgery, seed = _read(folder)
        try:
            with torch.device("meta"):
                surgery.operate(plain, Context(seed=seed, device=torch.device("meta")))
        except NotImplementedError:                      # it looks at numbers, which are not there
            return
        except RuntimeError as error:
            raise UserError(f"{folder}: what its {TABLE} describes cannot be made: {first_line(error)}.") \
                from None
        more = sum(p.numel() for p in plain.parameters()) - before
        if 4 * more > (there := hardware.memory_bytes()):
            raise UserError(f"{folder}: its {TABLE} would put {more:,} numbers into the model, and memory "
                            f"holds {there / 4:,.0f}.")
