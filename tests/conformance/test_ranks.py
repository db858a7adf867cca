"""Two processes come to the weights of one: all methods, in one start of two processes."""
from __future__ import annotations

import pytest

from trainwright.check import battery
from trainwright.check.laws import TRAINS
from trainwright.check.ranks import check_ranks
from trainwright.check.subject import load
from trainwright.core import registry


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_come_to_the_weights_of_one() -> None:
    classes = {name: load(name) for name in registry.cards()}
    names = [name for name, cls in classes.items() if issubclass(cls, TRAINS) and not battery.absent(cls)]
    problems = check_ranks(names)
    assert problems == dict.fromkeys(names, "")
