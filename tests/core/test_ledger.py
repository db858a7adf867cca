"""Memory and FLOPs are those of the stage: of nothing before it, and of nothing that counts them."""
from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from trainwright.core import flops, ledger


class Block(nn.Module):
    """Keeps a few MB for its backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(6):
            x = self.linear(x).tanh()
        return x


def backward(counter: FlopCounterMode | flops.Count) -> float:
    """The peak above what was there, of eight blocks that are checkpointed."""
    blocks, x = [Block() for _ in range(8)], torch.randn(8192, 64, generator=torch.Generator().manual_seed(0))
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
    ledger.reset_peak()
    before = ledger.memory()
    with counter:
        for block in blocks:
            x = block(x)
        x.sum().backward()
    return ledger.peak_memory() - before


@pytest.mark.slow
def test_counting_flops_leaves_checkpointing_its_effect() -> None:
    backward(FlopCounterMode(display=False))                               # what is done but once
    theirs, ours = FlopCounterMode(display=False), flops.Count()
    kept, freed = backward(theirs), backward(ours)
    assert ours.flops == theirs.get_total_flops() > 8 * 6 * 2 * 8192 * 64 * 64
    assert freed < 0.7 * kept, "torch's own tracker of modules keeps what the blocks computed again"


def test_what_was_freed_before_is_not_charged() -> None:
    # 32 KiB each: a C library keeps such pieces
    small = [torch.ones(2**13) for _ in range(4000)]
    last = torch.ones(2**13)
    ledger.reset_peak()
    full = ledger.peak_memory()
    assert full >= 4000 * 2**15
    small.clear()
    ledger.reset_peak()
    assert ledger.peak_memory() < full - 0.8 * 4000 * 2**15 and last.sum() == 2**13
