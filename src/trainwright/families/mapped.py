"""Models whose weights lie in memory-mapped files: how a rank sees a model of which it will keep a part.

A random start is drawn for the whole model, surgeries read all of it, and an export writes all of it. On
several ranks its large tensors are then pages of files, not of the process: the system keeps in memory what
is in use and may write back or drop the rest, so that a rank owns its shards and little more. Nothing else
changes: the same code draws the same numbers into other pages.

A checkpoint in the type that is asked for is mapped where it lies, and takes no more disk. What is drawn
or converted goes to scratch files in ``TMPDIR`` where that is set (a local disk, not one in memory), else in
the store. They lose their names as soon as they are open, so that they go when the process ends, however it
ends. What ranks have trained they write, each its own rows, into files of the store. What is written in place
into a mapped checkpoint becomes the process's own until the model is cut into shards.
"""
from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from trainwright.core import sharding
from trainwright.core.errors import UserError

LARGE = 1 << 16
"""Bytes from which on a tensor has a file of its own: smaller ones would fill many pages in part."""
ONE_BY_ONE = "HF_DEACTIVATE_ASYNC_LOAD"
"""Has transformers read each tensor when its turn comes: its threads would run ahead, up to the whole model.
"""


class Scratch:
    """Where the tensors of models that are not kept whole lie.

    Args:
        store: a folder of the store, for files without a name where ``TMPDIR`` names no other.
    """

    def __init__(self, store: Path) -> None:
        self.folder = Path(os.environ.get("TMPDIR") or store)
        self._numbers = itertools.count()

    @torch.no_grad()
    def copied(self, t: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A copy of ``t`` on the CPU, in a file where it is large.

        Raises:
            UserError: the folder has no room for it, or holds no files that can be mapped.
        """
        made = self._empty(t.shape, dtype or t.dtype)
        return made.copy_(t)

    def _empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        size = shape.numel() * dtype.itemsize
        if size < LARGE:
            return torch.empty(shape, dtype=dtype, device="cpu")
        file = self.folder / f".mapped-{os.getpid()}-{next(self._numbers)}"
        try:
            handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                if sys.platform == "linux":
                    os.posix_fallocate(handle, 0, size)   # a full disk is an error here, and a signal later
                made = torch.from_file(str(file), shared=True, size=shape.numel(), dtype=dtype, device="cpu")
            finally:
                os.close(handle)
                file.unlink()
        except (OSError, RuntimeError) as error:
            why = error.strerror if isinstance(error, OSError) else "its files cannot be mapped"
            raise UserError(f"{self.folder} has no room for {size / 2**30:.2f} GiB of a model ({why}): set "
                            "TMPDIR to a folder on a local disk.") from None
        return made.view(shape)

    @contextmanager
    def catching(self, dtype: torch.dtype | None = None) -> Iterator[None]:
        """Move the large parameters that modules are given within to files, each when it is given.

        Args:
            dtype: of the parameters; default: as they are.
        """
        def caught(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
            if parameter is not None:
                self._move(parameter, dtype)

        hook, before = register_module_parameter_registration_hook(caught), os.environ.get(ONE_BY_ONE)
        os.environ[ONE_BY_ONE] = "1"
        try:
            yield
        finally:
            hook.remove()
            del os.environ[ONE_BY_ONE]
            os.environ |= {ONE_BY_ONE: before} if before is not None else {}

    def convert(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Give the large parameters of a model another type, one after the other, in place."""
        for parameter in model.parameters():
            self._move(parameter, dtype)

    def _move(self, parameter: nn.Parameter, dtype: torch.dtype | None) -> None:
        t = parameter.data
        kind = dtype if dtype is not None and t.is_floating_point() else t.dtype
        if type(t) is not Tensor or t.device.type != "cpu" or t.numel() * t.element_size() < LARGE:
            return
        if kind != t.dtype or (not is_mapped(t) and t.untyped_storage().nbytes() == t.nbytes):
            parameter.data = self.copied(t, kind)


def write_shards(tensors: dict[str, Tensor], folder: Path) -> dict[str, Path]:
    """Write what this rank has of tensors that are cut into rows, each to its file; returns the files once
    all ranks have written. What is not cut, each rank has whole."""
    files = {n: folder / str(i) for i, (n, t) in enumerate(tensors.items()) if isinstance(t, DTensor)}

    def begin() -> None:
        if sharding.main():
            shutil.rmtree(folder, ignore_errors=True)           # of an attempt that was killed
            folder.mkdir(parents=True)

    def write() -> None:
        for name, file in files.items():
            rows, (first, *_) = sharding.part(tensors[name])
            write_rows(rows, first, file)

    sharding.everywhere(begin)
    sharding.everywhere(write)
    return files


def write_rows(t: Tensor, at: int, file: Path) -> None:
    """Write rows of a tensor to their place in the file of the whole one, which others write too.

    Args:
        at: the number of the first row.
    """
    rows = t.detach().cpu().contiguous()
    left = memoryview(rows.view(-1).view(torch.uint8).numpy())
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        place = at * (rows[0].nbytes if len(rows) else 0)
        while left:
            done = os.pwrite(handle, left, place)
            left, place = left[done:], place + done
    except OSError as error:
        error.filename = str(file)
        raise
    finally:
        os.close(handle)


def taken(file: Path, like: Tensor) -> Tensor:
    """The tensor in a file whose rows are all written, of the whole shape and the type of ``like``; the file
    loses its name."""
    made = torch.from_file(str(file), shared=True, size=like.numel(), dtype=like.dtype, device="cpu")
    file.unlink()
    return made.view(like.shape)


def is_mapped(t: Tensor) -> bool:
    """Whether a tensor on the CPU lies in pages that torch has not allocated, as those of files are."""
    return not t.untyped_storage().resizable()
