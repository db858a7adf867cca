"""Which files a path of a recipe means: every file below a folder is read, or counted under a reason."""
from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from trainwright.core.errors import UserError
from trainwright.data.sources.text._files import ENDINGS, known, lacking, suffix
from trainwright.storage.store import is_store

HUB = "hf://"
CARD = re.compile(
    r"---\s*\n(?:[^\n]*\n)*?(?:license|dataset_info|configs|task_categories|language|tags|pretty_name|"
    r"size_categories|annotations_creators|base_model|library_name|pipeline_tag):"
)
"""How the card of a data set or a model begins, the README.md of its repository on the Hub."""
CARD_BYTES = 1 << 14
KINDS = 8
"""Endings that are named at most."""


class Found(NamedTuple):
    """The files that a path means, as the recipe would write each, in order, and what else lies there."""

    names: list[str]
    left_out: Counter[str]
    """Files that are not read, by the reason."""

    def said(self) -> str:
        """What is not read, in words."""
        kinds = {r: n for r, n in self.left_out.items() if r.startswith(".") or not r}
        reasons = [
            f"{reason}: {number:,}" for reason, number in sorted(self.left_out.items()) if reason not in kinds
        ]
        if kinds:
            shown = [kind or "no ending" for kind in sorted(kinds)]
            named = ", ".join(shown[:KINDS]) + (" …" if len(shown) > KINDS else "")
            reasons.insert(0, f"{sum(kinds.values()):,} of unknown type ({named})")
        return "; ".join(reasons)


def found(written: str, root: Path) -> Found:
    """The files of one path of a recipe that stands in ``root``.

    Raises:
        UserError: there are none, or a file that is named cannot be read.
    """
    place = root / written
    # unlike Path's, it takes a name that no file can have for none
    if os.path.isdir(place):
        return _below(written, place)
    if os.path.isfile(place):
        return _readable([written])
    if not glob.has_magic(written):
        what = "is no regular file" if os.path.lexists(place) else "is not there"
        raise UserError(
            f"there is no file or folder {written} (in {root.resolve()}; it {what}); a data set of "
            f"the Hub is {HUB}OWNER/NAME."
        )
    matched = (n for n in glob.glob(written, root_dir=root, recursive=True) if os.path.isfile(root / n))
    stores: dict[Path, bool] = {}
    names = sorted(n for n in matched if not _in_a_store(Path(n), root, stores))
    if not names:
        raise UserError(f"no file matches {written} (in {root.resolve()}).")
    return _readable(names)


def _readable(names: list[str]) -> Found:
    for name in names:
        if suffix(name) not in known():
            raise UserError(f"{name}: the ending {suffix(name) or 'of no name'!r} is not known; known are "
                            f"{', '.join(known())}.")
        if lacking(name):
            raise UserError(f'{name} needs the library {lacking(name)}: pip install "trainwright[readers]".')
    return Found(names, Counter())


def _in_a_store(name: Path, root: Path, stores: dict[Path, bool]) -> bool:
    """Whether a file lies in a store that a wildcard reached into."""
    for folder in name.parents[:-1]:
        if folder not in stores:
            stores[folder] = is_store(root / folder)
        if stores[folder]:
            return True
    return False


def _below(written: str, place: Path) -> Found:
    """Everything below a folder, that behind links to folders too, each folder once."""
    left_out: Counter[str] = Counter()
    readable = []
    for file in _files(place, left_out):
        if reason := _reason(file):
            left_out["" if reason == "none" else reason] += 1
        else:
            readable.append(file)
    names = [(Path(written) / file.relative_to(place)).as_posix() for file in sorted(readable)]
    if not names:
        there = Found([], left_out).said()
        raise UserError(f"the folder {written} holds no file that can be read ({there or 'it is empty'}); "
                        f"endings known: {', '.join(known())}.")
    return Found(names, left_out)


def _files(place: Path, left_out: Counter[str]) -> Iterator[Path]:
    """Files below a folder; links to folders are followed when all real folders were seen, so that a folder
    has its own name where it lies below too."""
    seen: set[tuple[int, int]] = set()
    waiting = [place]
    while waiting:
        start, links = waiting.pop(0), list[Path]()
        for folder, inner, names in os.walk(start, onerror=_unreadable):
            here = Path(folder)
            if (key := _key(here)) in seen:
                inner.clear()
                continue
            seen.add(key)
            kept = [n for n in sorted(inner) if _entered(here / n, left_out)]
            links += [here / n for n in kept if (here / n).is_symlink()]
            inner[:] = [n for n in kept if not (here / n).is_symlink()]
            yield from (here / name for name in names)
        waiting += links


def _key(folder: Path) -> tuple[int, int]:
    told = folder.stat()
    return told.st_dev, told.st_ino


def _entered(folder: Path, left_out: Counter[str]) -> bool:
    """Whether a folder is looked into; one that is not counts as one."""
    reason = ""
    if folder.name.startswith("."):
        reason = "hidden folders"
    elif is_store(folder):
        reason = "stores of runs"
    if reason:
        left_out[reason] += 1
    return not reason


def _unreadable(error: OSError) -> None:
    raise UserError(f"cannot look into the folder {error.filename} ({error.strerror}).") from None


def _reason(file: Path) -> str:
    """Why a file is not read: in words, or the ending that is not known; empty where it is read."""
    if file.name.startswith("."):
        return "hidden"
    if not file.exists():
        return "links to nothing"
    if not file.is_file():
        return "no regular files"
    if suffix(file.name) in ENDINGS:
        return "images and sounds, read where a table names them"
    if suffix(file.name) not in known():
        return suffix(file.name) or "none"
    if lacking(file.name):
        return f'{suffix(file.name)[1:]} files, which need pip install "trainwright[readers]"'
    return "README.md that describe a repository of the Hub" if _is_card(file) else ""


def _is_card(file: Path) -> bool:
    if file.name.lower() != "readme.md":
        return False
    try:
        with open(file, "rb") as opened:
            return CARD.match(opened.read(CARD_BYTES).decode("utf-8-sig", "replace")) is not None
    except OSError:                                          # told where the file is read
        return False
