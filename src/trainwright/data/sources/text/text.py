"""Reads documents from files and folders, and from data sets on the Hugging Face Hub.

A text file (``.txt .md .rst``, source code) is one document, as is each row of a table
(``.jsonl .ndjson .json .csv .tsv .yaml .parquet .arrow``), a web page, a mail (``.eml``), a notebook, a
``.docx`` and a PDF, for which libraries of the extra ``readers`` are kept; each ending also as
``.gz .bz2 .xz .zst``. A row with ``messages``, with ``conversations`` (ShareGPT: from, value)
is a conversation, and so is one with a question and its answer in columns of the usual names (Alpaca's
``instruction``, ``input`` and ``output``; ``prompt``, ``question`` or ``query`` with ``completion``,
``response`` or ``answer``), where it has no ``text``; one with ``chosen`` and ``rejected`` (and ``prompt``)
is a preference pair, of plain text where they are strings and of messages where they are lists. Beside the
turns, ``system`` or ``system_prompt`` becomes the first message and ``tools`` reaches the chat template; an
answer whose ``weight`` is 0, or ``train`` false, is not learned. A ``label``, and an ``image`` or ``audio``
(a path from the file's folder on, or bytes), become columns of their own; a row with an image needs no text.
Other columns become metadata, and are named once. An id is the domain, the path as the recipe writes it, and
the row.

Of a folder every file below is read, links to folders once, or counted under the reason why it is not: a type
that is not known, hidden, a store of runs, a ``README.md`` that describes a repository of the Hub.

Not for scanned pages, which hold no text: they are counted and named, as is every page, mail or PDF that
cannot be read.

Errors: nothing matches a path, an unknown ending, a damaged file, a broken line, a missing column or two of
one name, bytes that are not UTF-8, a message of which something would be lost.
"""

from __future__ import annotations

import dataclasses
import glob
import logging
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainwright.core.errors import UserError, suggest
from trainwright.core.method import Curate
from trainwright.core.shown import brief
from trainwright.data.sources.text._conversations import ANSWER
from trainwright.data.sources.text._folders import HUB, found

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context
    from trainwright.corpus.sources import Row
    from trainwright.data.sources.text._rows import Reading


class Text(Curate):
    """Documents of files, folders, globs, and of Hub data sets (``hf://OWNER/NAME``)."""

    example: ClassVar[dict[str, Any]] = {"paths": [__file__]}

    paths: list[str]
    """Files, folders (read with all below), globs, or ``hf://OWNER/NAME``; relative ones are read from the
    recipe's folder."""
    domain: str = ""
    """Name of the part of the corpus; default: the stem of the file, or the name of the folder."""
    field: str = "text"
    """Column that holds the text, in tables without conversations."""
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    """Typed columns (prompt, chosen, rejected, label, number, image, audio) that have another name in the
    table, such as ``{ label = "stars" }``; ``number`` is read only where it is named here. With ``answer``
    rows are conversations: ``{ prompt = "question", answer = "reply" }``."""
    id: str = ""
    """Column that names a document; default: domain, path and row."""
    split: str = "train"
    """Split of a Hub data set."""
    subset: str = ""
    """Configuration of a Hub data set."""
    piece: int = 0
    """Cut plain text at blank lines into documents of about so many characters; 0: a file is one document."""
    invalid: Literal["error", "replace"] = "error"
    """Bytes of plain text that are not UTF-8: an error, or replaced by U+FFFD."""

    def __post_init__(self) -> None:
        if not self.paths:
            raise ValueError("paths names no file.")
        if self.piece < 0:
            raise ValueError(f"piece must not be negative, not {self.piece}.")
        from trainwright.corpus.columns import TYPED
        if ANSWER in self.columns and "prompt" not in self.columns:
            raise ValueError("columns names an answer without the prompt that it answers.")
        for name in self.columns:
            if name not in (*TYPED, ANSWER):
                raise ValueError(f"columns names {name!r}, which is no typed column{suggest(name, TYPED)}.")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.sources import table, union
        from trainwright.data.sources.text._files import read
        hub = [partial(_hub_rows, path, self.split, self.subset,
                       self._reading(path.rstrip("/").split("/")[-1], ctx.root, ctx))
               for path in self.paths if path.startswith(HUB)]
        local = [partial(read, file, name, self._reading(domain, file.parent, ctx))
                 for file, (name, domain) in self._files(ctx.root).items()]
        for written in self._local():
            if said := found(written, ctx.root).said():
                ctx.show(f"not read in {written}", said)
        return union(documents, table("text", [*local, *hub]))

    def depends(self, root: Path) -> str:
        """The files with their sizes and times, and so the images and sounds beside a table that names any.
        What the Hub holds is not asked."""
        from trainwright.data.sources.text._files import beside
        files = self._files(root)
        told = [(name, file.stat().st_size, file.stat().st_mtime_ns) for file, (name, _) in files.items()]
        media = {one for file in files for one in beside(file, self.columns)}
        return repr(told + [(str(one), one.stat().st_size, one.stat().st_mtime_ns) for one in sorted(media)])

    def _files(self, root: Path) -> dict[Path, tuple[str, str]]:
        """Each file once, with its path as the recipe writes it and the domain that it has by default."""
        files: dict[Path, tuple[str, str]] = {}
        for written in self._local():
            for name in found(written, root).names:
                files.setdefault((root / name).resolve(),
                                 (Path(name).as_posix(), _default_domain(written, root)))
        return files

    def _local(self) -> list[str]:
        return [os.path.expanduser(path) for path in self.paths if not path.startswith(HUB)]

    def _reading(self, default: str, folder: Path, ctx: Context) -> Reading:
        from trainwright.corpus.media import keeper
        from trainwright.data.sources.text._rows import Reading
        return Reading(domain=self.domain or default, field=self.field, id=self.id, invalid=self.invalid,
                       characters=self.piece, columns=self.columns, root=folder, keep=keeper(ctx),
                       texts=ctx.texts)


def _default_domain(written: str, root: Path) -> str:
    """The stem of a file, the name of a folder, the last folder of a glob before its first wildcard."""
    if (root / written).is_file():
        from trainwright.data.sources.text._compressed import without
        return Path(without(written)).stem
    fixed = []
    for part in Path(written).parts:
        if glob.has_magic(part) and not (root / written).is_dir():
            break
        fixed.append(part)
    return (root / Path(*fixed)).resolve().name or "root"


def _hub_rows(path: str, split: str, subset: str, how: Reading) -> Iterator[Row]:
    from trainwright.data.sources.text._files import filled
    from trainwright.data.sources.text._rows import row_to_document
    try:
        import datasets
    except ImportError:
        raise UserError(f'{path} needs the library datasets: pip install "trainwright[hub]".') from None
    name = path.removeprefix(HUB).removeprefix("datasets/")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) or Path(name).exists():
        raise UserError(f"{brief(path)} names no data set of the Hub: write hf://OWNER/NAME, and a folder or "
                        "a file of this machine by its path.")
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)     # what it says is raised, too
    try:
        rows = datasets.load_dataset(name, subset or None, split=split, streaming=True)
    except Exception as error:  # whatever the Hub, the network or the data set's own reader raises
        raise UserError(f"cannot open {path} (split {split!r}): {_first_line(error)}") from None
    for number, row in enumerate(_streamed(rows, path), 1):
        whole = {name: filled(value) for name, value in row.items()}
        yield row_to_document(whole, path, number, how)


def _streamed(rows: Any, path: str) -> Iterator[dict[str, Any]]:
    number = 0
    try:
        for row in rows:
            number += 1
            yield row
    except Exception as error:  # as above, in the middle of it
        raise UserError(f"cannot read {path} after row {number:,}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
