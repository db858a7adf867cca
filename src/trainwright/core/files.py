"""Files that may be anything: read only where they are what they should be, written whole or not at all.

A store, an adapter or a checkpoint may come from a stranger, or from a disk that has lost a block. What is
read here is a regular file of a sane size, or the reader is told which file is none.
"""
from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from trainwright.core.errors import UserError

MOST = 256 << 20
"""Bytes of text beyond which a file is none of ours …"""
ANY = 1 << 40
"""… and of those that grow with a run."""
SUMS = "checksums.json"
"""Beside what it vouches for: the checksum of every other file of a folder."""
HASHERS = 8
"""Threads that hash at a time, at most."""
MISREAD = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError,
           OverflowError)
"""What reading JSON of another shape than expected raises."""
T = TypeVar("T")


class Damaged(UserError):
    """Something of ours is not as it was written."""


@contextmanager
def expected(what: Path, remedy: str = "") -> Iterator[None]:
    """Name the file in which something other than expected was read, within."""
    try:
        yield
    except UserError:
        raise
    except MISREAD as error:
        why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise Damaged(f"{what} is damaged ({why[:120]}){remedy}") from None


def read_bytes(file: Path, most: int = MOST) -> bytes:
    """The content of a regular file.

    Raises:
        FileNotFoundError: there is none.
        Damaged: it is something else (a folder, a pipe), larger than ``most`` bytes, or may not be read.
    """
    try:
        with _regular(file, os.O_RDONLY) as opened:
            size = os.fstat(opened.fileno()).st_size
            if size > most:
                raise Damaged(f"{file} has {size:,} bytes, which is more than such a file ever has")
            return opened.read(size)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Damaged(f"{file} cannot be read ({error.strerror})") from None


@contextmanager
def _regular(file: Path, flags: int) -> Iterator[BufferedReader]:
    """A regular file, open. A pipe is not waited for."""
    handle = os.open(file, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise Damaged(f"{file} is no regular file")
        with open(handle, "rb", closefd=False) as opened:
            yield opened
    finally:
        os.close(handle)


def read_json(file: Path, most: int = MOST) -> Any:
    """What a JSON file holds; raises as ``read_bytes`` does, and ``Damaged`` where it holds no JSON."""
    data = read_bytes(file, most)
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise Damaged(f"{file} holds no JSON") from None


def write_text(file: Path, text: str) -> None:
    """Write a file of this content, whole or not at all, and on the disk when this returns. A link is
    replaced, not followed."""
    part = file.with_name(f".{file.name}.{threading.get_ident()}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        try:
            handle = os.open(part, flags, 0o666)
        except FileExistsError:                     # of a process of this number, and of an earlier life
            part.unlink()
            handle = os.open(part, flags, 0o666)
        with open(handle, "w", encoding="utf-8") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(handle)
        part.replace(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync(file.parent)


def write_json(file: Path, what: Any) -> None:
    """The same, of JSON for people to read."""
    write_text(file, json.dumps(what, indent=1, ensure_ascii=False) + "\n")


def room(folder: Path) -> Path:
    """A folder to write in, made where there is none (its parent has to be there).

    Raises:
        UserError: a link or a file is in its place: what is written there would land elsewhere.
    """
    folder.mkdir(exist_ok=True) if not folder.is_symlink() else None
    if folder.is_symlink():
        raise UserError(f"{folder} is a link: a store writes within itself only; put a folder in its place.")
    return folder


def without_links(folder: Path) -> Path:
    """The same folder, the links in it removed: what is written there under their names replaces them."""
    for file in folder.iterdir():
        if file.is_symlink():
            file.unlink()
    return folder


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checksum(file: Path) -> str:
    """BLAKE2b of a regular file, in hexadecimal. A link is none."""
    with _regular(file, os.O_RDONLY | os.O_NOFOLLOW) as opened:
        return hashlib.file_digest(opened, "blake2b").hexdigest()


def within(folder: Path) -> list[str]:
    """Everything below a folder that is no folder itself, by its path from there; hidden files are the file
    system's own."""
    found = []
    for place, _, names in os.walk(folder):
        inner = Path(place).relative_to(folder)
        found += [(inner / name).as_posix() for name in names if not name.startswith(".")]
        links = [n for n in os.listdir(place) if (Path(place) / n).is_symlink() and n not in names]
        found += [(inner / n).as_posix() for n in links]
    return sorted(found)


def each(work: Callable[[Path], T], folder: Path, names: Sequence[str]) -> dict[str, T]:
    """``work`` of each of a folder's files, in threads: hashing lets go of the interpreter."""
    with ThreadPoolExecutor(min(HASHERS, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(lambda name: work(folder / name), names), strict=True))


def seal(folder: Path) -> None:
    """Put everything below a folder on the disk, and its checksums beside it, in ``checksums.json``."""
    names = [name for name in within(folder) if name != SUMS]
    with ThreadPoolExecutor(1) as beside:               # the disk writes while the processor hashes
        settled = beside.submit(each, sync, folder, names)
        sums = each(checksum, folder, names)
        settled.result()
    write_text(folder / SUMS, json.dumps(sums))


def broken(folder: Path) -> list[str]:
    """The files of a sealed folder that are not what they were; empty where all are."""
    try:
        sums = read_json(folder / SUMS)
    except (Damaged, OSError):
        return [SUMS]
    names = [name for name in within(folder) if name != SUMS]
    if not isinstance(sums, dict) or set(sums) != set(names):
        return sorted(set(sums) ^ set(names)) if isinstance(sums, dict) else [SUMS]

    def same(file: Path) -> bool:
        try:
            return bool(checksum(file) == sums[file.relative_to(folder).as_posix()])
        except (OSError, Damaged):
            return False
    return [name for name, good in each(same, folder, names).items() if not good]


_INTACT: dict[Path, str] = {}
"""Sealed folders that were looked at in this process, and how they looked from outside."""


def intact(folder: Path, made: bool = False) -> list[str]:
    """The same as ``broken``, once a process as long as no file changes its size or time. ``made``: it was
    sealed just now, and need not be read again."""
    names = within(folder)
    seen = [(name, s.st_size, s.st_mtime_ns, s.st_ino) for name in names for s in [(folder / name).lstat()]]
    looks = hashlib.blake2b(repr(seen).encode()).hexdigest()
    at = folder.resolve()
    if not made and _INTACT.get(at) != looks and (bad := broken(folder)):
        return bad
    _INTACT[at] = looks
    return []
