"""FLOPs of whole steps, counted where they are spent: forward, backward, passes without gradients, updates.

To watch every operation takes about 20 microseconds for each: 8 % of a step of LoRA on SmolLM2 and two
threads, more where the device is faster. So each of the first ``DENSE`` steps is counted, and then one step,
drawn from the seed, of every ``BLOCK``; the others are taken to cost what the last counted ones did on
average. What a method does now and then is thereby counted as often as it happens; a pass over many
batches, which would make such an average wrong for long, is counted exactly where the method says so
(``apart``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

if TYPE_CHECKING:
    from trainwright.core.context import Context

DENSE, BLOCK = 8, 8

# torch has formulas for the attention of GPUs alone; a CPU's is counted alike
for _way in ("", "_backward"):
    _gpu, _cpu = (getattr(torch.ops.aten, f"_scaled_dot_product_flash_attention{kind}{_way}")
                  for kind in ("", "_for_cpu"))
    flop_registry[_cpu] = flop_registry[_gpu]


class Count(TorchDispatchMode):
    """The FLOPs of what runs within it: 2 for each multiplication with an addition, of matrix
    products and attention alone."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out


@contextmanager
def counting() -> Iterator[Count]:
    """Count the FLOPs of a block of code."""
    with Count() as count:
        yield count


@contextmanager
def apart(ctx: Context) -> Iterator[None]:
    """Count exactly, whether or not the step is one of those that are counted, what only some steps do."""
    with counting() as count:
        yield
    ctx.apart += count.flops


def counts(step: int, draw: Callable[[str], torch.Generator]) -> bool:
    """Whether the step behind ``step`` finished ones is counted. ``draw`` gives a generator for a key
    (``Context.rng`` at 0)."""
    if step < DENSE:
        return True
    block, place = divmod(step, BLOCK)
    return int(torch.randint(BLOCK, (1,), generator=draw(f"flops/{block}"))) == place
