"""Images and sounds of documents: files under a hash of their bytes, which a column refers to as
``media:HASH.ENDING``.

While a corpus is built they lie in the stage's scratch, shared by its methods; the corpus keeps those that a
document refers to. One that two documents share is kept once. Use ``keep`` in a method that makes media, and
``find`` in one that reads them.
"""
from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.files import Damaged
from trainwright.core.shown import brief
from trainwright.corpus.columns import Keep
from trainwright.corpus.tokens import link

PREFIX = "media:"
REFERENCE = re.compile(PREFIX + r"([0-9a-f]{64}\.[a-z0-9]{2,5})")
FOLDER = "media"
BEGINS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpg", b"GIF8": "gif", b"BM": "bmp",
          b"II*\0": "tiff", b"MM\0*": "tiff", b"fLaC": "flac", b"OggS": "ogg", b"ID3": "mp3",
          b"\xff\xfb": "mp3", b"\xff\xf3": "mp3"}
"""The endings of files that begin so."""


def ending(data: bytes) -> str:
    """How a file of these bytes ends; ``bin`` where they are of no format that is known here."""
    if data[:4] == b"RIFF":
        return {b"WEBP": "webp", b"WAVE": "wav"}.get(data[8:12], "bin")
    return next((name for start, name in BEGINS.items() if data.startswith(start)), "bin")


def put(folder: Path, data: bytes, what: str) -> str:
    """Keep bytes below ``folder``; returns their reference.

    Raises:
        ValueError: they are of no format of images or sounds that is known here.
    """
    kind = ending(data)
    if kind == "bin":
        known = ", ".join(sorted({*BEGINS.values(), "webp", "wav"}))
        raise ValueError(f"the bytes of an {what} must be of a known format ({known}), not begin with "
                         f"{data[:8]!r}")
    reference = f"{PREFIX}{hashlib.sha256(data).hexdigest()}.{kind}"
    file = path(folder, reference)
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f"{file.name}.{os.getpid()}")
        new.write_bytes(data)
        os.replace(new, file)
    return reference


def path(folder: Path, reference: str) -> Path:
    """Where below ``folder`` the bytes of a reference lie.

    Raises:
        Damaged: it is none, and may lead anywhere.
    """
    if not (found := REFERENCE.fullmatch(reference)):
        raise Damaged(f"{brief(reference)} is no reference of an image or a sound: the corpus is not as it "
                      "was written.")
    return folder / found[1][:2] / found[1]


def keeper(ctx: Context) -> Keep | None:
    """What keeps media for a method: in the scratch that all methods of its stage share. None outside of a
    stage."""
    return None if ctx.folder is None else partial(put, ctx.folder.parent / FOLDER)


@contextmanager
def picture(file: Path | bytes) -> Iterator[Any]:
    """An image, open.

    Raises:
        UserError: it is none that can be read, or has more points than any photograph.
    """
    from PIL import Image
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as opened:
            yield opened
    except UserError:
        raise
    except Exception as error:  # of whatever reads its format: no list names all that may be wrong
        raise UserError(f"an image cannot be read: {str(error) or type(error).__name__}.") from None


def find(ctx: Context, reference: str) -> Path:
    """The file of a reference that a document of this stage, or of ``from.data``, holds."""
    folders = [ctx.folder.parent] if ctx.folder is not None else []
    return located([f / FOLDER for f in (*folders, *ctx.inputs.get("data", ()))], reference)


def located(folders: Sequence[Path], reference: str) -> Path:
    for folder in folders:
        if (file := path(folder, reference)).is_file():
            return file
    raise UserError(f"there is no file of {reference}: media come into a corpus through media.keeper.")


def collect(references: Iterable[str], folders: Sequence[Path], out: Path) -> int:
    """Link the files of ``references``, each once, from wherever they lie to ``out``; returns their bytes."""
    size = 0
    for reference in references:
        file, made = located(folders, reference), path(out, reference)
        if not made.is_file():
            made.parent.mkdir(parents=True, exist_ok=True)
            link(file, made)
            size += made.stat().st_size
    return size
