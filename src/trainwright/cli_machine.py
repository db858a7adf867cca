"""What the machine refuses (room on a disk, memory, files, permission), in a sentence, whichever library it
told."""
from __future__ import annotations

import errno
import os
import re

from trainwright.core.shown import brief

ROOM, OTHER = "make room or choose another --store", "choose another --store, or change its permissions"
FULL = {errno.ENOSPC: ROOM, errno.EDQUOT: ROOM,
        errno.EFBIG: "files may not grow so large here (ulimit -f)",
        errno.EMFILE: "allow more open files (ulimit -n)", errno.ENFILE: "allow more open files",
        errno.EACCES: OTHER, errno.EPERM: OTHER,
        errno.EROFS: "choose another --store"}
"""What helps."""
SCARCE = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN)
NUMBER = re.compile(r"\((?:os error|error code) (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)
"""How libraries that are not Python tell the number of an error."""
MEMORY = re.compile(r"can't allocate memory|cannot allocate memory|not enough memory|out of memory|bad_alloc|"
                    r"failed to map segment|can't start new thread|Unable to allocate", re.IGNORECASE)
KEPT = "what was saved before is kept"


ENGINE = re.compile(r"execution task has died")
"""How the engine of tables tells that a thread of its own has ended."""


def exhausted(error: BaseException) -> bool:
    """Whether nothing is left of something that every program needs: memory, threads, open files."""
    return refused(error) is not None and not (isinstance(error, OSError) and error.errno not in SCARCE)


def refused(error: BaseException) -> str | None:
    """What the machine refused, and what helps; None where it is no such error."""
    at: BaseException | None = error
    while at is not None:
        if said := _refused(at):
            return said
        at = at.__cause__
    return None


def _refused(error: BaseException) -> str | None:
    text = str(error)
    told = isinstance(error, RuntimeError | OSError | ImportError) and MEMORY.search(text)
    if isinstance(error, MemoryError) or told:
        return ("there is too little memory: take fewer rows at a time or a smaller model, or allow more "
                f"(ulimit -v); {KEPT}.")
    if ENGINE.search(text) or type(error).__name__ == "PanicException":
        return (f"a thread of a library has ended in the middle of its work ({text[:100]}): it had too "
                f"little memory, too few threads or too few open files (ulimit -v, -u, -n); {KEPT}.")
    found = NUMBER.search(text)
    if not isinstance(error, OSError) and found is None:
        return None
    number = error.errno if isinstance(error, OSError) and error.errno else None
    if number is None and found is not None:
        number = int(found[1] or found[2])
    file = error.filename if isinstance(error, OSError) else None
    if number == errno.ENAMETOOLONG:
        return f"{brief(file)} is too long for the name of a file."
    said = error.strerror if isinstance(error, OSError) else None
    what = said or (os.strerror(number) if number is not None else text[:200] or type(error).__name__)
    at = f" ({os.fsdecode(file)})" if file else ""
    return f"{what}{at}: {FULL[number]}; {KEPT}." if number in FULL else f"{what}{at}; {KEPT}."
