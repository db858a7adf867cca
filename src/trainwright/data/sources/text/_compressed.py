"""Files that are compressed, opened as what is in them. A small one may hold more than any memory does: no
more is taken than there is room for."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from trainwright.core import hardware
from trainwright.core.errors import UserError

LONGEST = 256 << 20
"""Bytes of a line, at most."""
SHARE = 8
"""Of the free memory, the part that the bytes of one document may take: its text and its tokens take more."""
OPENERS: dict[str, Callable[[Path], IO[bytes]]] = {}
"""By ending."""
DAMAGED = (zlib.error, EOFError, gzip.BadGzipFile, lzma.LZMAError)
"""What a compressed file that is not whole raises, of what is no ``OSError``."""


def opened(path: Path) -> IO[bytes]:
    """The file, uncompressed where its ending says that it is compressed."""
    return OPENERS.get(path.suffix.lower(), lambda p: open(p, "rb"))(path)


def without(name: str) -> str:
    """A file's name without the ending of its compression."""
    return name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in OPENERS else name


def whole(file: IO[bytes], written: str) -> bytes:
    """All that is in a file.

    Raises:
        UserError: it does not fit into memory.
    """
    most = int(min(hardware.memory_bytes() / SHARE, 1 << 40))
    data = file.read(most + 1)
    if len(data) > most:
        raise UserError(f"{written} holds more than {most / 2**30:.1f} GiB in one piece, which is too much "
                        "for the memory of this machine: cut it into several files.")
    return data


def lines(file: IO[bytes], written: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers.

    Raises:
        UserError: one is longer than any document.
    """
    for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), 1):
        if len(line) > LONGEST:
            raise UserError(f"{written}, line {number}: this line has more than {LONGEST >> 20} MiB.")
        yield number, line


class _Zstandard(io.RawIOBase):
    """A stream of Arrow's decompression that can begin again."""

    def __init__(self, path: Path) -> None:
        self.path, self.stream, self.at = path, self._begin(path), 0

    @staticmethod
    def _begin(path: Path) -> Any:
        import pyarrow as pa
        return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("a compressed file is read from its beginning")
        place = offset if whence == io.SEEK_SET else self.at + offset
        if place < self.at:
            self.stream, self.at = self._begin(self.path), 0
        while self.at < place and (found := self.stream.read(min(place - self.at, 1 << 20))):
            self.at += len(found)
        return self.at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        try:
            found = self.stream.read(len(view))
        except OSError as error:
            raise EOFError(str(error)) from None
        view[: len(found)] = found
        self.at += len(found)
        return len(found)


def _zstandard(path: Path) -> IO[bytes]:
    return io.BufferedReader(_Zstandard(path), 1 << 20)


OPENERS |= {".gz": gzip.GzipFile, ".bz2": bz2.BZ2File, ".xz": lzma.LZMAFile, ".zst": _zstandard}
