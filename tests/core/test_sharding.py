"""What must hold of shards that a lone process can show; two processes are in ``tests/test_two_ranks.py``."""
from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from trainwright.core import sharding


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_what_is_written_counts_in_the_next_pass(group: None) -> None:
    """FSDP keeps the outermost module gathered behind an evaluation, and would train on with the weights
    that were shown then."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    params, x = dict(model.named_parameters()), torch.eye(2)
    for value in (2.0, 3.0):
        sharding.write(model, params, {n: torch.full_like(p, value) for n, p in params.items()})
        with torch.no_grad():
            assert torch.equal(model(x), torch.full((2, 2), value))
    sharding.write(model, params, {})
    assert dict(model.named_parameters()).keys() == params.keys()
    assert all(p is params[n] for n, p in model.named_parameters()), "the model shows its shards again"
