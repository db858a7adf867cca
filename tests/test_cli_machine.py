"""What the machine refuses is a sentence, in whichever words a library tells it."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from trainwright.cli_machine import refused

KEPT = "what was saved before is kept."


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/x"),
            f"No space left on device (/x): make room or choose another --store; {KEPT}",
        ),
        (
            OSError(errno.EFBIG, "File too large"),
            f"File too large: files may not grow so large here (ulimit -f); {KEPT}",
        ),
        (
            OSError(errno.EMFILE, "Too many open files", "a"),
            f"Too many open files (a): allow more open files (ulimit -n); {KEPT}",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", b"/x"),
            f"Permission denied (/x): choose another --store, or change its permissions; {KEPT}",
        ),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), f"Not a directory (a/b); {KEPT}"),
        (OSError("something else"), f"something else; {KEPT}"),
        (
            RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
            f"No space left on device: make room or choose another --store; {KEPT}",
        ),
        (
            RuntimeError("[errno 27] File too large"),
            f"File too large: files may not grow so large here (ulimit -f); {KEPT}",
        ),
    ],
)
def test_files(error: Exception, said: str) -> None:
    assert refused(error) == said


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        RuntimeError("can't start new thread"),
        ImportError("libx.so: failed to map segment from shared object"),
    ],
)
def test_memory(error: Exception) -> None:
    assert str(refused(error)).startswith(
        "there is too little memory: take fewer rows at a time or a smaller model"
    )


def test_the_cause_counts_and_a_bug_is_none() -> None:
    full = RuntimeError("a table could not be written")
    full.__cause__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    assert str(refused(full)).startswith("Disk quota exceeded: make room")
    bug = KeyError("x")
    bug.__context__ = FileNotFoundError(2, "No such file")
    assert (
        refused(bug)
        is refused(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
        is refused(ValueError("x"))
        is None
    )


def test_a_name_that_is_too_long() -> None:
    assert (
        refused(OSError(errno.ENAMETOOLONG, "File name too long", "x" * 9))
        == "'xxxxxxxxx' is too long for the name of a file."
    )
