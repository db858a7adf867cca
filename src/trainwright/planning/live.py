"""The bytes of all tensors that are alive at once, at most: what a step needs, counted and not sampled.

On a GPU the allocator counts. On a CPU every operation is watched, backward passes included: a storage counts
from the operation that makes it until it is freed, so that weights, gradients, the optimizer's state and all
that autograd keeps for the backward pass are in it. What a kernel allocates within itself is not, nor are
libraries, code or the data's files: the memory of a process, which has them, changes by tens of megabytes
from one start to the next.
"""
from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainwright.core.held import Held


class Live(TorchDispatchMode):
    """Counts the storages of tensors while it is entered; ``peak`` is the most bytes at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.known: dict[int, tuple[weakref.ref[torch.UntypedStorage], int, int]] = {}
        """By the storage: its number and bytes."""
        self.made = 0
        """Storages so far; the number of the next."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            self.add(leaf)
        return out

    def add(self, found: Any) -> None:
        """Count the storage of a tensor; one that is known may have another size by now."""
        if not isinstance(found, torch.Tensor) or found.device.type == "meta":
            return
        if found.layout != torch.strided or isinstance(found, Held):
            return                                       # what holds the bits is counted by itself
        storage = found.untyped_storage()
        key, size = id(storage), storage.nbytes()
        ref, number, before = self.known.get(key) or (None, self.made, 0)
        if ref is None:
            self.made += 1
            ref = weakref.ref(storage, lambda _: self._drop(key))
        self.known[key] = (ref, number, size)
        self.change(number, size - before)

    def _drop(self, key: int) -> None:
        _, number, size = self.known.pop(key)
        self.change(number, -size)

    def change(self, number: int, size: int) -> None:
        """A storage has so many bytes more, or fewer."""
        self.now += size
        self.peak = max(self.peak, self.now)


class Peak:
    """What ``counting`` found: ``bytes``, once the block has ended."""

    bytes = 0


@contextmanager
def counting() -> Iterator[Peak]:
    """Count within a block of code, all tensors included that are there before it."""
    peak = Peak()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated()
        return
    with Live() as live:
        for one in gc.get_objects():
            kind = type(one)                                 # asking some objects for their class warns
            if issubclass(kind, torch.Tensor) and not issubclass(kind, FakeTensor):
                live.add(one)
        yield peak
        peak.bytes = live.peak
