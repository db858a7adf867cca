"""The store: one folder an artifact, under a hash of everything it depends on. Nothing half-written is ever
in it.

It is a closed world. Names stay within it, nothing is written or removed through a link, and no folder is
replaced that it has not made. What is damaged is named and skipped.
"""
from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from trainwright.core import files
from trainwright.core.errors import UserError, suggest
from trainwright.core.files import Damaged
from trainwright.storage.artifact import MANIFEST, Artifact, sources_of
from trainwright.storage.caches import SUMMED, vouched

MOST_FILES = 100_000
"""Files below a folder beyond which it is neither a checkpoint nor a corpus."""
OWN = {"work", "cache", "runs", "reports", "comparisons"}
"""Folders of a store beside its artifacts."""


def is_store(folder: Path) -> bool:
    """Whether a folder is a store: artifacts lie in it, or work on one, or nothing but folders that stores
    have."""
    def named(place: Path, has: str) -> bool:
        return any(re.fullmatch(r".+-[0-9a-f]{12}", name) and os.path.lexists(place / name / has)
                   for name in os.listdir(place))
    try:
        inner = set(os.listdir(folder))
        return (named(folder, MANIFEST) or ("work" in inner and named(folder / "work", "lock"))
                or ("cache" in inner and inner <= OWN))
    except OSError:
        return False


class Store:
    """Artifacts by stage and hash, work folders of unfinished stages (``work/``) and shared caches
    (``cache/``).

    ``damaged`` holds what was skipped so far, and why.
    """

    def __init__(self, root: Path) -> None:
        root = _plain(root)
        for place in (root, *root.parents):
            if place.exists() and not place.is_dir():
                raise UserError(f"{place} is a file; a store is a folder: name another with --store.")
        self.root = root
        self.damaged: dict[str, str] = {}

    # ---- names and places -----------------------------------------------------------------------------

    def path(self, stage: str, key: str) -> Path:
        return self.root / _name(f"{stage}-{key}")

    def folder(self, *names: str) -> Path:
        """A folder in the store, made where there is none; what is written there stays in the store.

        Raises:
            UserError: it is a link, or a file.
        """
        place = self.root
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            place = files.room(place / _name(name))
        return place

    def work(self, stage: str, key: str) -> Path:
        return self.root / "work" / _name(f"{stage}-{key}")

    # ---- finding --------------------------------------------------------------------------------------

    def find(self, stage: str, key: str) -> Artifact | None:
        """The artifact, or None while it is not made.

        Raises:
            Damaged: it is there, and its manifest is not as it was written.
        """
        artifact = self._exact(f"{stage}-{key}")
        if artifact is not None and artifact.manifest["hash"] != key:
            raise Damaged(f"{artifact.path / MANIFEST} is that of another artifact; "
                          f"{self.remedy(artifact.path.name)}")
        return artifact

    def _exact(self, name: str) -> Artifact | None:
        """The artifact in the folder of this name."""
        artifact = Artifact(self.root / _name(name))
        if not os.path.lexists(artifact.path / MANIFEST):
            return None
        try:
            _ = artifact.manifest
        except Damaged as error:
            self.damaged[name] = str(error)
            raise Damaged(f"{error}; {self.remedy(name)}") from None
        return artifact

    def artifacts(self) -> list[Artifact]:
        """All artifacts, oldest first: what one was made from stands before it, whatever the clock said.
        A damaged one is named, once, and left out."""
        found: dict[str, tuple[Artifact, dict[str, Any]]] = {}
        for folder in sorted(self.root.iterdir()) if self.root.is_dir() else ():
            if not os.path.lexists(folder / MANIFEST):
                continue
            try:
                found[folder.name] = Artifact(folder), Artifact(folder).manifest
            except Damaged as error:
                if os.path.lexists(folder):                     # another process may be removing it
                    self.skip(folder.name, str(error))
        times = _order({name: manifest for name, (_, manifest) in found.items()})
        return [found[name][0] for name in sorted(found, key=lambda n: (times[n], n))]

    def skip(self, name: str, why: str) -> None:
        """Name what is damaged, once, and go on without it."""
        if name not in self.damaged:
            print(f"{why}; it is skipped", file=sys.stderr)
        self.damaged[name] = why

    def named(self, name: str) -> Artifact:
        """An artifact by its folder's name, or the newest of a stage's name."""
        if (exact := self._exact(name)) is not None:
            return exact
        artifacts = [(a, a.manifest["stage"]) for a in self.artifacts()]
        found = [a for a, stage in artifacts if stage == name]
        if not found:
            raise UserError(f"{self.root}: no artifact "
                            f"{name!r}{suggest(name, {stage for _, stage in artifacts})}.")
        return found[-1]

    def users(self, name: str) -> list[Artifact]:
        """Artifacts that were made from the one in the folder of this name."""
        try:
            key = Artifact(self.root / name).manifest["hash"]
        except Damaged:
            key = name.rpartition("-")[2]
        return [a for a in self.artifacts()
                if key in sources_of(a.manifest)]

    # ---- making ---------------------------------------------------------------------------------------

    @contextmanager
    def claim(self, stage: str, key: str) -> Iterator[Path]:
        """The work folder of a stage, for this process alone; a process that dies lets go of it. Where
        nothing but empty folders is left in it, it goes."""
        final = self.path(stage, key)
        if os.path.lexists(final) and not os.path.lexists(final / MANIFEST):
            raise UserError(f"{final} is in the way: the store has not made it, and does not replace it. "
                            "Move it elsewhere, or take another --store.")
        folder = self.folder("work", f"{stage}-{key}")
        with _locked(folder / "lock", stage):
            try:
                yield folder
            finally:
                if [f for f in files.within(folder) if f != "lock"] == []:
                    shutil.rmtree(folder, ignore_errors=True)

    def tidy(self, stage: str, key: str) -> None:
        """Remove what a process left that was killed right after it had committed."""
        shutil.rmtree(self.work(stage, key), ignore_errors=True)

    def commit(self, out: Path, stage: str, key: str, manifest: dict[str, Any]) -> Artifact:
        """Give a finished folder its name, its checksums in it. Its work folder goes."""
        files.write_json(out / MANIFEST, manifest)
        files.seal(out)
        final = self.path(stage, key)
        if os.path.lexists(final):
            raise UserError(f"{final} is in the way: the store has not made it, and does not replace it.")
        out.rename(final)
        files.sync(self.root)
        files.intact(final, made=True)
        self.tidy(stage, key)
        return Artifact(final)

    # ---- removing and verifying -----------------------------------------------------------------------

    def remove(self, name: str, force: bool = False) -> Path:
        """Remove an artifact, unless others were made from it. Of a link to one, the link goes.

        Raises:
            UserError: it is none that a store has made, or others were made from it.
        """
        path = self.root / _name(name)
        if not os.path.lexists(path / MANIFEST):
            path = self.named(name).path
        users = [] if force else self.users(path.name)
        if users:
            raise UserError(f"{path.name} is what {', '.join(u.path.name for u in users)} came from; "
                            "remove those first, or say --force.")
        if path.is_symlink():
            path.unlink()
            return path
        if not self._made(path):
            raise UserError(f"{path} is no artifact that a store has made; remove it yourself if you mean "
                            "to.")
        trash = self.folder("work") / f"{path.name}.removed"        # at once: half of one passes for a whole
        if trash.is_symlink():
            trash.unlink()
        shutil.rmtree(trash, ignore_errors=True)
        path.rename(trash)
        shutil.rmtree(trash)
        return path

    @staticmethod
    def _made(path: Path) -> bool:
        """Whether a store has made a folder. Where its manifest is damaged, it has a name as artifacts have,
        and checksums."""
        try:
            return bool(Artifact(path).manifest)
        except Damaged:
            return re.search(r"-[0-9a-f]{12}$", path.name) is not None and os.path.lexists(path / files.SUMS)

    def opened(self, artifact: Artifact) -> Path:
        """The folder of an artifact that is about to be read. What is in it is looked at once a process.

        Raises:
            Damaged: a file of it is not as it was written.
        """
        if not artifact.path.is_dir():
            raise Damaged(f"{artifact.path} was removed; run the same command again.")
        if bad := files.intact(artifact.path):
            raise Damaged(self._broken(artifact.path.name, bad))
        return artifact.path

    def verify(self, name: str | None = None) -> Iterator[tuple[str, str]]:
        """Look at every file of an artifact, or of all and of the caches: names, and what is wrong; nothing
        where all is as it was written."""
        names = [self.named(name).path.name] if name else [a.path.name for a in self.artifacts()]
        for one in names:
            bad = files.broken(self.root / one)
            yield one, self._broken(one, bad) if bad else ""
        if name is None:
            yield from ((one, f"{why}; {self.remedy(one)}") for one, why in self.damaged.items())
            yield from self._caches()

    def _caches(self) -> Iterator[tuple[str, str]]:
        place = self.root / "cache"
        for found in files.within(place):
            file = place / found
            if file.suffix == SUMMED and not vouched(file):
                yield f"cache/{found}", (f"{file.with_suffix('')} is not as it was written; it is made again "
                                         "when it is next needed")
            if file.name == files.SUMS and (bad := files.broken(file.parent)):
                yield f"cache/{found}", (f"{file.parent / bad[0]} is not as it was written; remove "
                                         f"{file.parent}")

    def _broken(self, name: str, bad: list[str]) -> str:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        verb = "are" if len(bad) > 1 else "is"
        return f"{self.root / name}: {', '.join(bad[:3])}{more} {verb} not as written; {self.remedy(name)}"

    def remedy(self, name: str) -> str:
        """How to make an artifact again."""
        force = " --force" if self.users(name) else ""
        where = "" if self.root == Path("store") else f" --store {self.root}"
        return f"make it again: `trainwright store rm {name}{force}{where}`, then run its recipe"


def _plain(root: Path) -> Path:
    """A path that every library takes for the same folder: some take ``~`` at its begin for somebody's home,
    and what ends with a colon there for an address."""
    with suppress(RuntimeError):                                # nobody of this name has a home
        root = root.expanduser()
    return root.absolute() if re.search("[~:]", root.parts[0] if root.parts else "") else root


def _name(name: str) -> str:
    """A name that stays within the store."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise UserError(f"{name!r} is no name of an artifact: take one that `trainwright store ls` shows.")
    return name


@contextmanager
def _locked(file: Path, stage: str) -> Iterator[None]:
    while True:
        try:
            handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise UserError(f"{file} is a link: a store writes within itself only; remove it.") from None
        with open(handle, "r+b"):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"another process is at work on the stage {stage!r} in {file.parent}; wait "
                                "for it, or take another --store.") from None
            if not os.path.lexists(file) or os.fstat(handle).st_ino != file.lstat().st_ino:
                file.parent.mkdir(exist_ok=True)                # who held it has just removed it
                continue
            yield
            return


def _order(manifests: dict[str, dict[str, Any]]) -> dict[str, tuple[str, int]]:
    """What artifacts are sorted by: when they were finished, but not before what they were made from."""
    by_hash: dict[str, list[str]] = {}
    for name, manifest in manifests.items():
        by_hash.setdefault(manifest["hash"], []).append(name)
    sources = {name: {s for key in sources_of(m) for s in by_hash.get(key, ())}
               for name, m in manifests.items()}
    times = {name: (manifest["finished"], 0) for name, manifest in manifests.items()}
    for _ in manifests:                                         # no chain is longer than there are artifacts
        late = [(name, s) for name in times for s in sources[name] - {name} if times[s] >= times[name]]
        for name, source in late:
            times[name] = max(times[name], (times[source][0], times[source][1] + 1))
        if not late:
            break
    return times


def key_of(*things: Any) -> str:
    """The hash under which an artifact is kept."""
    return hashlib.sha256(json.dumps(things, sort_keys=True, default=str).encode()).hexdigest()[:12]


def stamp(path: Path) -> str:
    """What identifies a folder or file outside the store: names, sizes and times of its files.

    Raises:
        UserError: it cannot be read, or so many files lie below it that it is no checkpoint and no corpus,
            but a home or a disk.
    """
    try:
        below = list(islice(path.rglob("*"), MOST_FILES + 1)) if path.is_dir() else []
        if len(below) > MOST_FILES:
            raise UserError(f"{path} holds more than {MOST_FILES:,} files: it is no checkpoint and no "
                            "corpus.")
        inside = sorted(f for f in below if f.is_file()) if path.is_dir() else [path]
        found = [(str(f.relative_to(path)), f.stat()) for f in inside]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}.") from None
    return key_of([(name, told.st_size, told.st_mtime_ns) for name, told in found])
