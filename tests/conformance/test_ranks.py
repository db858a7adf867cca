"""Two processes come to the weights of one: a third of all methods each day, in one start of two processes.
``trainwright check`` tries a method whenever it is asked."""
from __future__ import annotations

import datetime

import pytest

from trainwright.check import battery
from trainwright.check.battery import expected_of
from trainwright.check.laws import TRAINS
from trainwright.check.ranks import RANKS, check_ranks
from trainwright.check.subject import load
from trainwright.core import registry


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_come_to_the_weights_of_one() -> None:
    classes = {name: load(name) for name in registry.cards()}
    names = [name for name, cls in classes.items() if issubclass(cls, TRAINS) and not battery.absent(cls)]
    names = names[datetime.date.today().toordinal() % 3::3]
    problems = check_ranks(names)
    known = {name for name in names if RANKS in expected_of(classes[name], None)}
    assert {n: why for n, why in problems.items() if n not in known} == dict.fromkeys(set(names) - known, "")
    assert all("two processes come to another" in problems[n] for n in known if problems[n])
