"""Two processes come to the weights of one. All methods in one start of two processes, since to start takes seconds."""
from __future__ import annotations

from pathlib import Path

import pytest

from trainwright.check import battery
from trainwright.check.laws import TRAINS
from trainwright.core import registry

SHARDED = '''"""Scales updates by the norm of what this rank happens to hold."""
from trainwright.core import sharding
from trainwright.core.method import Update


class Sharded(Update):
    """Scales updates by the norm of what this rank happens to hold."""

    def update(self, updates, params, state, ctx):
        return {n: u / (1e-6 + float(sharding.local(u).norm())) for n, u in updates.items()}
'''
WAITING = '''"""Lets one process wait for the other for ever."""
from trainwright.core import sharding
from trainwright.core.method import Update


class Waiting(Update):
    """Lets one process wait for the other for ever."""

    def update(self, updates, params, state, ctx):
        if sharding.world() > 1 and sharding.main():
            raise ValueError("only one of two stops")
        return updates
'''
OWN = '''"""Keeps what belongs to a rank, and says so."""
import torch

from trainwright.core import sharding
from trainwright.core.method import Update


class Own(Update):
    """Keeps what belongs to a rank, and says so."""

    def init(self, model, ctx):
        return {"rank": {"scale": torch.tensor(1.0 + sharding.world())}}

    def update(self, updates, params, state, ctx):
        return {n: u * float(state["rank"]["scale"]) for n, u in updates.items()}
'''


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_come_to_the_weights_of_one() -> None:
    classes = {name: battery.load(name) for name in registry.cards()}
    names = [name for name, cls in classes.items() if issubclass(cls, TRAINS) and not battery.absent(cls)]
    problems = battery.check_ranks(names)
    assert problems == dict.fromkeys(names, "")


@pytest.mark.slow
def test_a_method_that_knows_of_shards_is_caught(tmp_path: Path) -> None:
    for name, text in (("sharded", SHARDED), ("own", OWN), ("waiting", WAITING)):
        (tmp_path / f"{name}.py").write_text(text)
    sharded, own, waiting = (str(tmp_path / f"{name}.py") for name in ("sharded", "own", "waiting"))
    problems = battery.check_ranks([sharded, own, waiting])
    assert "two processes come to another" in problems[sharded]
    assert problems[own] == "", "state of single ranks may depend on their number"
    assert "only one of two stops" in problems[waiting]
