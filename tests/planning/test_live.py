"""Bytes of tensors that are alive at once, counted by hand and the same each time."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from trainwright.planning import live

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there the allocator counts")
KB = 1000 * 4
"""Bytes of a thousand float32 numbers."""


@pytest.fixture(autouse=True)
def _still() -> Iterator[None]:
    """What other tests have left is not freed in the middle of one."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def grown(work) -> int:
    """What a block needs beyond the tensors that were there before."""
    with live.counting() as nothing:
        pass
    with live.counting() as peak:
        work()
    return peak.bytes - nothing.bytes


@pytest.mark.slow
def test_what_is_alive_at_once_counts_and_what_was_freed_does_not() -> None:
    def one_after_another() -> None:
        for _ in range(5):
            torch.zeros(1000)

    def all_at_once() -> None:
        _ = [torch.zeros(1000) for _ in range(5)]

    assert grown(one_after_another) in (KB, 2 * KB)        # the name may hold the last one a moment longer
    assert grown(all_at_once) == 5 * KB


@pytest.mark.slow
def test_views_share_their_bytes_and_results_in_place_add_none() -> None:
    held = torch.zeros(1000)
    assert grown(lambda: held.view(10, 100).t()[2:]) == 0
    assert grown(lambda: held.add_(1)) == 0


@pytest.mark.slow
def test_what_autograd_keeps_is_counted_until_it_is_used() -> None:
    """exp keeps its result, so a chain of four holds four; with recomputation nothing is kept."""
    x = torch.zeros(1000, requires_grad=True)

    def chain() -> None:
        y = x
        for _ in range(4):
            y = y.exp()

    def without() -> None:
        with torch.no_grad():
            chain()

    assert grown(chain) == 4 * KB and grown(without) == 2 * KB


@pytest.mark.slow
def test_a_step_by_hand() -> None:
    """Weights are there before; a step adds gradients of their size, and Adam two states."""
    net = nn.Linear(100, 100, bias=False)
    weights = 100 * 100 * 4
    x = torch.zeros(1, 100)
    plain = grown(lambda: net(x).sum().backward())
    assert weights <= plain < weights + 2000
    net.zero_grad(set_to_none=True)
    adam = torch.optim.Adam(net.parameters(), foreach=False)

    def step() -> None:
        net(x).sum().backward()
        adam.step()

    assert 3 * weights <= grown(step) < 6 * weights + 2000   # with temporary tensors of its formula


@pytest.mark.slow
def test_it_is_the_same_number_each_time() -> None:
    net = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))

    def step() -> None:
        net(torch.ones(8, 16)).square().mean().backward()
        net.zero_grad(set_to_none=True)

    assert len({grown(step) for _ in range(4)}) == 1
