"""What a result was made with: versions of packages, and the commit of the checkout that a recipe lies in."""
from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from functools import cache
from pathlib import Path

from trainwright.core.errors import UserError
from trainwright.core.files import read_bytes


@cache
def versions() -> dict[str, str]:
    """Of Python and of every package that can change a result."""
    found = {"python": sys.version.split()[0]}
    for name in ("trainwright", "torch", "transformers", "tokenizers", "safetensors", "numpy", "daft",
                 "peft"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


MOST_GIT = 1 << 20
"""Bytes of a file that git keeps names of commits in."""


@cache
def git_commit(folder: Path) -> str | None:
    """The commit that the checkout is at in which a folder lies. Read from its files: git itself would run
    what a stranger's folder tells it to. Changes since then are not seen; the settings and the hash hold
    them."""
    try:
        root = next((place / ".git" for place in (folder.resolve(), *folder.resolve().parents)
                     if (place / ".git").exists()), None)
        if root is None:
            return None
        if root.is_file():                                         # a worktree, or a submodule
            root = root.parent / _git(root).removeprefix("gitdir: ")
        shared = root / "commondir"
        places = [root, *([root / _git(shared)] if shared.is_file() else [])]
        return _commit(_git(root / "HEAD"), places)
    except (OSError, ValueError, UserError):
        return None


def _commit(head: str, places: list[Path]) -> str | None:
    """The hash that HEAD stands for."""
    ref = head.removeprefix("ref: ")
    if head == ref:
        return head if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", head) else None
    if not re.fullmatch(r"refs/[\w./@+-]+", ref) or ".." in ref:
        return None
    for place in places:
        if (place / ref).is_file():
            return _commit(_git(place / ref), [])
        packed = _git(place / "packed-refs") if (place / "packed-refs").is_file() else ""
        for line in packed.splitlines():
            if line.endswith(f" {ref}"):
                return _commit(line.split()[0], [])
    return None


def _git(file: Path) -> str:
    return read_bytes(file, MOST_GIT).decode().strip()


def describe() -> str:
    """The machine in a few words."""
    import torch
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} x {torch.cuda.device_count()}"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
