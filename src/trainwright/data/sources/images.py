"""Pictures with captions, from folders.

Each picture (``.png .jpg .jpeg .gif .bmp .tif .tiff .webp``) below a folder is a document: its text is the
caption, its column ``image`` the picture. The caption of NAME.png is the first line of NAME.txt beside it, or
what a ``metadata.jsonl`` in its folder or above says of its ``file_name`` (as Hugging Face's ``imagefolder``
has it), whose other columns become metadata. The domain is the folder right below the one that is named, so
that folders can be classes; an id is the domain and the path from there.

Where a picture is transparent, ``background`` shows through, since no model sees transparency; with ``side``
large ones are made small, once and for all. Such pictures are kept as PNG, all others byte for byte.

Not for a table with a column of pictures (JSONL, Parquet): ``text`` reads it.

Errors: a folder without pictures, a picture without a caption (unless ``missing`` says what to do), one that
cannot be read, a broken line of ``metadata.jsonl``.
"""
from __future__ import annotations

import importlib.util
import io
import json
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainwright.core.errors import UserError, located
from trainwright.core.method import Curate
from trainwright.core.shown import brief

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context
    from trainwright.corpus.columns import Keep
    from trainwright.corpus.sources import Row

ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp")
TABLE = "metadata.jsonl"
ICONS = Path(importlib.util.find_spec("matplotlib").origin).parent / "mpl-data" / "images"  # type: ignore
"""Pictures that are on every machine."""


class Images(Curate):
    """Pictures and their captions."""

    example: ClassVar[dict[str, Any]] = {"paths": [str(ICONS)], "captions": "name"}

    paths: list[str]
    """Folders of pictures, each read with all below; relative ones from the recipe's folder."""
    domain: str = ""
    """Name of the part of the corpus; default: the folder right below the one that is named, or that one."""
    captions: Literal["file", "name", "none"] = "file"
    """Where captions come from: the text file beside the picture or ``metadata.jsonl``; the picture's own
    name, in words; or nowhere, for pictures alone."""
    field: str = "text"
    """Column of ``metadata.jsonl`` with the caption."""
    missing: Literal["error", "skip"] = "error"
    """A picture that has no caption: an error, or left out."""
    side: int = 0
    """Pixels of the shorter side to which larger pictures are shrunk; 0: they stay as large as they are."""
    background: str = "white"
    """Colour that shows through where a picture is transparent: a name, or ``#rrggbb``."""

    def __post_init__(self) -> None:
        from PIL import ImageColor
        if not self.paths:
            raise ValueError("paths names no folder.")
        if self.side < 0:
            raise ValueError(f"side must not be negative, not {self.side}.")
        try:
            ImageColor.getrgb(self.background)
        except ValueError:
            raise ValueError("background must be a colour such as white or #ffffff, not "
                             f"{brief(self.background)}.") from None

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.media import keeper
        from trainwright.corpus.sources import table, union
        readers = [partial(_read, self, ctx.root, path, keeper(ctx)) for path in self.paths]
        return union(documents, table(self.name, readers))

    def depends(self, root: Path) -> str:
        """The files below the folders, with sizes and times."""
        files = [f for path in self.paths for f in _files(root, path)]
        return repr([(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files])


def _files(root: Path, written: str) -> list[Path]:
    """Everything below a folder that is read, hidden files left out, in order."""
    folder = root / os.path.expanduser(written)
    if not folder.is_dir():
        raise UserError(f"there is no folder {written} (in {root.resolve()}).")
    known = (*ENDINGS, ".txt", ".jsonl")
    found = [f for f in sorted(folder.rglob("*")) if f.is_file() and f.suffix.lower() in known]
    return [f for f in found if not any(part.startswith(".") for part in f.relative_to(folder).parts)]


def _read(how: Images, root: Path, written: str, keep: Keep | None) -> Iterator[Row]:
    from trainwright.corpus.sources import document
    files = _files(root, written)
    pictures = [f for f in files if f.suffix.lower() in ENDINGS]
    if not pictures:
        raise UserError(f"images: the folder {written} holds no picture; endings known: "
                        f"{', '.join(ENDINGS)}.")
    folder = root / os.path.expanduser(written)
    told = {} if how.captions != "file" else _told([f for f in files if f.name == TABLE])
    for file in pictures:
        place = file.relative_to(folder)
        caption, more = _caption(file, told.get(file.resolve()), how)
        if not caption and how.captions != "none":
            if how.missing == "error":
                raise UserError(f"images: {Path(written) / place} has no caption: no {file.stem}.txt beside "
                                f"it and no line in {TABLE}; missing = \"skip\" leaves such pictures out.")
            continue
        data, size = _picture(file, how)
        domain = how.domain or (place.parts[0] if len(place.parts) > 1 else folder.resolve().name)
        yield document(
            id=f"{domain}/{place.as_posix()}",
            domain=domain,
            source=(Path(written) / place).as_posix(),
            text=caption,
            metadata=more | {"width": size[0], "height": size[1]},
            columns={"image": data},
            keep=keep,
        )


def _told(tables: list[Path]) -> dict[Path, dict[str, Any]]:
    """What tables say of pictures, by file."""
    found: dict[Path, dict[str, Any]] = {}
    for table in tables:
        try:
            lines = table.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{table} cannot be read as text: {error}.") from None
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line) if line.strip() else None
                found |= {} if row is None else {(table.parent / row["file_name"]).resolve(): row}
            except (ValueError, TypeError, KeyError, RecursionError):
                raise UserError(f"{table}, line {number}: a line is a JSON object with file_name.") from None
    return found


def _caption(file: Path, told: dict[str, Any] | None, how: Images) -> tuple[str, dict[str, Any]]:
    """The caption of a picture, and what else is said of it."""
    if how.captions == "none":
        return "", {}
    if how.captions == "name":
        return " ".join(re.findall(r"[^\W_]+", file.stem)), {}
    beside = file.with_suffix(".txt")
    if beside.is_file():
        lines = beside.read_text(encoding="utf-8", errors="replace").splitlines()
        return (lines[0].strip() if lines else ""), {}
    row = told or {}
    rest = {k: v for k, v in row.items() if k not in (how.field, "file_name")}
    return str(row.get(how.field) or "").strip(), rest


def _picture(file: Path, how: Images) -> tuple[bytes, tuple[int, int]]:
    """The bytes of a picture without transparency, not larger than asked for, and its width and height."""
    from PIL import Image

    from trainwright.corpus import media
    data = file.read_bytes()
    with located(f"images: {file}"), media.picture(data) as opened:
        clear, large = opened.has_transparency_data, how.side and min(opened.size) > how.side
        if not clear and not large:
            opened.load()
            return data, opened.size
        picture = opened.convert("RGBA")
    whole = Image.alpha_composite(Image.new("RGBA", picture.size, how.background), picture).convert("RGB")
    if large:
        scale = how.side / min(whole.size)
        size = (max(1, round(whole.width * scale)), max(1, round(whole.height * scale)))
        whole = whole.resize(size, Image.Resampling.BICUBIC)
    out = io.BytesIO()
    whole.save(out, "PNG")
    return out.getvalue(), whole.size
