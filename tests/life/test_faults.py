"""Killed or without room in any kind of stage, and in a comparison: the same command goes on, and what it
makes is the same to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Forked
from tests.life import faults
from trainwright.core.stage import stages

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
Told = tuple[Path, dict[str, Any]]
OWN = {"manifest.json", "checksums.json", "metrics.jsonl"}
"""Files of an artifact that say when it was made, and how long that took."""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, forked: Forked) -> Told:
    folder = tmp_path_factory.mktemp("faults")
    return folder, forked("tests.life.faults", folder)


def contents(store: Path) -> dict[str, bytes]:
    """What artifacts hold, but for times."""
    found = [f for m in store.glob("*/manifest.json") for f in m.parent.rglob("*") if f.name not in OWN]
    return {f.relative_to(store).as_posix(): f.read_bytes() for f in found if f.is_file()}


def test_there_is_a_stage_of_each_kind() -> None:
    kinds = {s["name"]: s["kind"] for s in faults.life()["stage"]} | {"rounds.2.tune": "repeat"}
    assert {kinds[name] for name in faults.STAGES} == set(stages())


@pytest.mark.parametrize("what", ["run", "compare"])
def test_every_place_fails_and_every_process_after_it_goes_on(what: str, told: Told) -> None:
    _, done = told
    assert [(end["at"], end["code"]) for end in done[f"{what} whole"]] == [("", 0)]
    places = [f"work/{name}-" for name in faults.STAGES] if what == "run" else ["work/adapt-", "/runs/"]
    for name, code in (("killed", -9), ("full", 2)):
        *failed, last = done[f"{what} {name}"]
        assert last["code"] == 0, last["said"]
        assert {end["code"] for end in failed} == {code}, failed
        assert {end["at"] for end in failed} == set(places)


@pytest.mark.parametrize("what", ["run", "compare"])
def test_a_full_disk_is_one_sentence(what: str, told: Told) -> None:
    for end in told[1][f"{what} full"][:-1]:
        errors = [line for line in end["said"].splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and "No space left on device" in errors[0], end["said"]
        assert "make room" in errors[0] and "Traceback" not in end["said"]


@pytest.mark.parametrize("name", ["killed", "full"])
def test_artifacts_are_the_same_and_nothing_else_is_left(name: str, told: Told) -> None:
    folder, _ = told
    whole, store = folder / f"run whole{faults.STORE}", folder / f"run {name}{faults.STORE}"
    assert contents(store) == contents(whole) and len(contents(whole)) > 30
    assert not [*store.glob("work/*")] and not [*store.rglob("*.tmp")]


@pytest.mark.parametrize("name", ["killed", "full"])
def test_a_comparison_finds_the_same(name: str, told: Told) -> None:
    """A full disk is no result of an arm."""
    whole, again = (numbers(told[0] / f"compare {n}{faults.STORE}") for n in ("whole", name))
    assert again == whole and all(len(runs) == 2 for runs in whole.values())


def numbers(store: Path) -> dict[str, Any]:
    """What was measured in the runs of each arm of the comparison in a store."""
    (file,) = store.glob("comparisons/*/result.json")
    arms = {arm["name"]: arm for arm in json.loads(file.read_text())["arms"]}
    assert not any(arm["failed"] for arm in arms.values())
    return {
        name: [
            (run["hashes"], {n: v for n, v in run["metrics"].items() if n.startswith("loss/")})
            for run in arm["runs"]
        ]
        for name, arm in arms.items()
    }
