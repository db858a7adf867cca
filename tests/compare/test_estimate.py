"""How many runs of a comparison are made at a time, and what that makes of its estimate."""
from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.compare.tiny import comparison
from trainwright.compare import estimate as estimates
from trainwright.compare import execute
from trainwright.compare.estimate import estimate
from trainwright.report.comparison import table


@pytest.fixture
def machine(monkeypatch):
    """Four cores and 10 GB, and arms whose runs take 100 seconds."""
    def planned(recipe, store, probes):
        figures = {"steps": 100.0, "seconds": 100.0, "flops": 1e15, "memory_bytes": machine.memory}
        return SimpleNamespace(stages=[SimpleNamespace(figures=figures, cached=False)])

    machine = SimpleNamespace(memory=1e9)
    monkeypatch.setattr(execute.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(execute.hardware, "memory_bytes", lambda: 10e9)
    monkeypatch.setattr(execute.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(estimates, "plan", planned)
    return machine


def test_a_core_has_a_run_as_far_as_memory_goes(tmp_path, machine):
    c = comparison(tmp_path, seeds=2)
    c.jobs = 0
    found = estimate(c)
    runs = sum(a.runs + a.trials for a in found.arms)
    assert c.jobs == found.at_a_time == 4 and found.seconds == runs * 100.0 / 4 and found.memory_bytes == 4e9
    assert "4 runs at a time, at most 4.0 GB of memory" in str(table.estimate(found).caption)
    machine.memory = 3e9
    few = comparison(tmp_path, seeds=2)
    few.jobs = 0
    assert estimate(few).at_a_time == few.jobs == 2, "eight of ten gigabytes"
    machine.memory = 30e9
    assert execute.at_a_time(machine.memory) == 1


def test_what_somebody_says_stands(tmp_path, machine):
    c = comparison(tmp_path, seeds=2)
    c.jobs = 3
    assert estimate(c).at_a_time == c.jobs == 3


def test_seconds_that_are_spent_are_those_of_one_run(tmp_path, machine):
    c = comparison(tmp_path, seeds=2, budget={"seconds": 10.0})
    c.jobs = 0
    found = estimate(c)
    assert found.at_a_time == c.jobs == 1 and "at a time" not in str(table.estimate(found).caption)
    ray = comparison(tmp_path, seeds=2)
    ray.jobs, ray.engine = 0, "ray"
    estimate(ray)
    assert ray.jobs == 1


def test_on_a_gpu_there_is_one(tmp_path, machine, monkeypatch):
    monkeypatch.setattr(execute.torch.cuda, "is_available", lambda: True)
    assert execute.at_a_time(1e9) == execute.at_a_time() == 1
