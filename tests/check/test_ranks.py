"""The law of the ranks on methods that break it, and when two processes are taken to stand still."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trainwright.check import ranks
from trainwright.check.ranks import Watch, check_ranks

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
STANDING = '''"""Sleeps on one of two processes."""
import time

from trainwright.core import sharding
from trainwright.core.method import Update


class Standing(Update):
    """Sleeps on one of two processes."""

    def update(self, updates, params, state, ctx):
        while sharding.world() > 1 and sharding.main():
            time.sleep(1)
        return updates
'''


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What two processes came to, by method, in this order."""
    folder = tmp_path_factory.mktemp("methods")
    texts = {"sharded": SHARDED, "own": OWN, "waiting": WAITING, "standing": STANDING, "behind": OWN}
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "STILL", 5)
        problems = check_ranks([str(folder / f"{name}.py") for name in texts])
    return {Path(file).stem: why for file, why in problems.items()}


@pytest.mark.slow
def test_a_method_that_knows_of_shards_is_caught(found: dict[str, str]) -> None:
    assert "two processes come to another" in found["sharded"]
    assert found["own"] == "", "state of single ranks may depend on their number"
    assert "only one of two stops" in found["waiting"]


@pytest.mark.slow
def test_two_processes_that_wait_for_each_other_are_stopped(found: dict[str, str]) -> None:
    assert "came to no end" in found["standing"]
    assert "stood still and were stopped" in found["standing"]
    assert found["behind"] == "", "what comes behind it is tried all the same"


@pytest.fixture
def looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Watch, list[float | None]]:
    """A watch, and the processor seconds that it will see."""
    seen: list[float | None] = []
    monkeypatch.setattr(ranks, "processor_seconds", lambda processes: seen.pop(0))
    return Watch(tmp_path / "found.jsonl"), seen


def test_slow_is_not_still(looks: tuple[Watch, list[float | None]]) -> None:
    watch, seen = looks
    seen += [0.05 * look for look in range(200)]  # a fortieth of one processor, on a machine that is busy
    assert [watch.look([1]) for _ in range(200)] == [""] * 200


def test_no_processor_time_and_no_line_is_still(looks: tuple[Watch, list[float | None]]) -> None:
    watch, seen = looks
    seen += [7.0] * 200
    found = [watch.look([1]) for _ in range(ranks.STILL + 1)]
    assert found[:-1] == [""] * ranks.STILL and "stood still" in found[-1]
    watch.out.write_text("a line\n")
    assert watch.look([1]) == ""


def test_what_never_ends_is_stopped_by_what_it_uses(looks: tuple[Watch, list[float | None]]) -> None:
    watch, seen = looks
    seen += [100.0 * look for look in range(200)]
    found = [watch.look([1]) for _ in range(8)]
    assert found[:7] == [""] * 7 and "processor seconds" in found[7]


def test_a_system_that_does_not_tell_stops_nothing(looks: tuple[Watch, list[float | None]]) -> None:
    watch, seen = looks
    seen += [None] * 200
    assert [watch.look([1]) for _ in range(200)] == [""] * 200


def test_processor_seconds_are_those_of_what_was_started() -> None:
    work = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None
        launcher.stdout.readline()
        used = ranks.processor_seconds([launcher.pid])
        launcher.communicate("\n")
    assert used is not None and used >= 0.25
