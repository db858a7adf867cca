"""Entries of caches: files that are made once, vouched for by their checksums, and swept away where a process
died over them."""
from __future__ import annotations

import json
import os
from pathlib import Path

from trainwright.core.files import Damaged, checksum, read_json, write_text

SUMMED = ".sums"
"""Ending of the file beside an entry of a cache that holds the checksums of its files."""


def sweep(cache: Path) -> None:
    """Remove what a process that was killed left of a file it was making (``NAME.PID``); one that is alive
    keeps its own."""
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


def vouch(*entry: Path) -> None:
    """Put the checksums of the files of an entry of a cache beside them, as ``NAME.sums``. It is written
    last: an entry without it is not whole."""
    write_text(entry[0].with_suffix(SUMMED), json.dumps({file.name: checksum(file) for file in entry}))


def vouched(sums: Path) -> bool:
    """Whether the files that a ``NAME.sums`` names are there, and as they were."""
    try:
        told = read_json(sums)
        return all("/" not in name and checksum(sums.parent / name) == value for name, value in told.items())
    except (OSError, Damaged, AttributeError, TypeError):
        return False
