"""Files that are compressed, opened as what is in them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

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
