"""The store: one folder an artifact, under a hash of everything it depends on. Nothing half-written is ever in it."""
from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trainwright.core.errors import UserError, suggest


@dataclass(frozen=True)
class Artifact:
    """What a stage made: a folder with ``manifest.json``."""

    path: Path

    @property
    def manifest(self) -> dict[str, Any]:
        """Settings, inputs, versions, figures."""
        out: dict[str, Any] = json.loads((self.path / "manifest.json").read_text())
        return out

    @property
    def figures(self) -> dict[str, Any]:
        """What was measured."""
        out: dict[str, Any] = self.manifest["figures"]
        return out

    def metrics(self) -> list[dict[str, float]]:
        """The rows of ``metrics.jsonl``, one a step."""
        file = self.path / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


class Store:
    """Artifacts by stage and hash, work folders of unfinished stages (``work/``) and shared caches (``cache/``)."""

    def __init__(self, root: Path) -> None:
        if root.exists() and not root.is_dir():
            raise UserError(f"{root} is a file; a store is a folder: name another with --store.")
        self.root = root

    def path(self, stage: str, key: str) -> Path:
        return self.root / f"{stage}-{key}"

    def find(self, stage: str, key: str) -> Artifact | None:
        path = self.path(stage, key)
        return Artifact(path) if (path / "manifest.json").is_file() else None

    def artifacts(self) -> list[Artifact]:
        """All artifacts, oldest first."""
        found = []
        for file in self.root.glob("*/manifest.json"):
            with suppress(FileNotFoundError):                            # another process may be removing it
                found.append((Artifact(file.parent).manifest["finished"], file.parent))
        return [Artifact(folder) for _, folder in sorted(found)]

    def named(self, name: str) -> Artifact:
        """An artifact by its folder's name, or the newest of a stage's name."""
        exact = Artifact(self.root / name)
        if (exact.path / "manifest.json").is_file():
            return exact
        found = [a for a in self.artifacts() if a.manifest["stage"] == name]
        if not found:
            known = {a.manifest["stage"] for a in self.artifacts()}
            raise UserError(f"{self.root}: no artifact {name!r}{suggest(name, known)}.")
        return found[-1]

    def work(self, stage: str, key: str) -> Path:
        return self.root / "work" / f"{stage}-{key}"

    @contextmanager
    def claim(self, stage: str, key: str) -> Iterator[Path]:
        """The work folder of a stage, for this process alone; a process that dies lets go of it."""
        folder = self.work(stage, key)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"another process is at work on the stage {stage!r} in {folder}; wait for it, "
                                "or take another --store.") from None
            try:
                yield folder
            finally:
                if [f.name for f in folder.glob("*")] == ["lock"]:
                    shutil.rmtree(folder, ignore_errors=True)

    def tidy(self, stage: str, key: str) -> None:
        """Remove what a process left that was killed right after it had committed."""
        shutil.rmtree(self.work(stage, key), ignore_errors=True)

    def commit(self, out: Path, stage: str, key: str, manifest: dict[str, Any]) -> Artifact:
        """Give a finished folder its name. Its work folder goes."""
        (out / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        final = self.path(stage, key)
        shutil.rmtree(final, ignore_errors=True)
        out.rename(final)
        shutil.rmtree(self.work(stage, key), ignore_errors=True)
        return Artifact(final)

    def remove(self, name: str, force: bool = False) -> Path:
        """Remove an artifact, unless others were made from it."""
        artifact = self.named(name)
        users = [] if force else self.users(artifact)
        if users:
            raise UserError(f"{artifact.path.name} is what {', '.join(u.path.name for u in users)} came from; "
                            "remove those first, or say --force.")
        trash = self.root / "work" / f"{artifact.path.name}.removed"    # at once: half an artifact would be taken for a whole one
        shutil.rmtree(trash, ignore_errors=True)
        trash.parent.mkdir(exist_ok=True)
        artifact.path.rename(trash)
        shutil.rmtree(trash)
        return artifact.path

    def users(self, artifact: Artifact) -> list[Artifact]:
        """Artifacts that were made from this one."""
        key = artifact.manifest["hash"]
        return [a for a in self.artifacts() if any(i["hash"] == key for inputs in a.manifest["inputs"].values() for i in inputs)]


def sweep(cache: Path) -> None:
    """Remove what a process that was killed left of a file it was making (``NAME.PID``); one that is alive keeps its own."""
    for part in cache.iterdir():
        owner = part.suffix.removeprefix(".")
        if owner.isdecimal() and not _alive(int(owner)):
            part.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:                                    # another user's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return process != os.getpid()                              # of this number, and of a life before this one


def key_of(*things: Any) -> str:
    """The hash under which an artifact is kept."""
    return hashlib.sha256(json.dumps(things, sort_keys=True, default=str).encode()).hexdigest()[:12]


def stamp(path: Path) -> str:
    """What identifies a folder or file outside the store: names, sizes and times of its files."""
    files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
    return key_of([(str(f.relative_to(path)), s.st_size, s.st_mtime_ns) for f in files for s in [f.stat()]])


@cache
def versions() -> dict[str, str]:
    """Of Python and of every package that can change a result."""
    found = {"python": sys.version.split()[0]}
    for name in ("trainwright", "torch", "transformers", "tokenizers", "safetensors", "numpy", "daft", "peft"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache
def git_commit(folder: Path) -> str | None:
    """The commit of the checkout that the recipe lies in, ``+`` behind it where files were changed."""
    try:
        ask = [subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=5)
               for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))]
    except (OSError, subprocess.SubprocessError):
        return None
    if ask[0].returncode:
        return None
    return ask[0].stdout.strip() + ("+" if ask[1].stdout.strip() else "")
