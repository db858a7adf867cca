"""A run that is killed inside a rollout, while it grades and between epochs goes on to the same bits, on one
rank and on two; and two ranks sample and learn what one does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.align import killed
from tests.conftest import Forked

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
Told = tuple[Path, dict[str, list[int]]]
CLOCKS = ("seconds", "tokens_per_second", "memory_bytes")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, forked: Forked) -> Told:
    folder = tmp_path_factory.mktemp("killed")
    return folder, forked("tests.align.killed", folder)


def weights(folder: Path, store: str, stage: str) -> dict[str, Tensor]:
    (file,) = (folder / store).glob(f"{stage}-*/model.safetensors")
    return load_file(file)


def rows(folder: Path, store: str, stage: str = "learned") -> list[dict[str, Any]]:
    (file,) = (folder / store).glob(f"{stage}-*/metrics.jsonl")
    every = map(json.loads, file.read_text().splitlines())
    return [{n: v for n, v in row.items() if n.rpartition("/")[2] not in CLOCKS} for row in every]


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_is_killed_goes_on_to_the_bit(ranks: int, told: Told) -> None:
    folder, codes = told
    assert codes[f"whole{ranks}"] == [0], (folder / f"whole{ranks}.log").read_text()[-2000:]
    assert codes[f"killed{ranks}"] == [-9] * len(killed.PLACES) + [0]
    whole, again = (weights(folder, f"{name}{ranks}", "learned") for name in ("whole", "killed"))
    assert whole.keys() == again.keys() and all(t.equal(again[n]) for n, t in whole.items())
    kept = rows(folder, f"whole{ranks}")
    assert kept == rows(folder, f"killed{ranks}")
    made = [row["step"] for row in kept if "rollout/reward" in row]
    assert made == [1, killed.SECOND + 1, 2 * killed.SECOND + 1]
    assert sum(row["rollout/ungraded"] for row in kept if "rollout/ungraded" in row) > 3


def test_two_ranks_sample_what_one_does(told: Told) -> None:
    one, two = (rows(told[0], f"whole{ranks}") for ranks in (1, 2))
    for a, b in zip(one, two, strict=True):
        for name in (n for n in a if n.startswith("rollout/")):
            assert b[name] == pytest.approx(a[name], abs=1e-12), name
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)
    assert {"mismatch/v1", "mismatch/v2", "mismatch/largest"} <= one[0].keys() and "mismatch/v2" not in one[1]
    assert one[0]["mismatch/largest"] < 1e-4


@pytest.mark.parametrize("divide", killed.DIVIDE)
def test_every_division_is_the_same_on_two_ranks(divide: str, told: Told) -> None:
    """One step of plain gradient descent at a rate of 1: weights differ as gradients do."""
    one, two = (weights(told[0], f"whole{ranks}", f"by_{divide}") for ranks in (1, 2))
    start = weights(told[0], "whole1", "base")
    assert max(float((t - two[n]).abs().max()) for n, t in one.items()) < 1e-6
    assert max(float((t - start[n]).abs().max()) for n, t in one.items()) > 1e-4
    for other in (d for d in killed.DIVIDE if d != divide):
        another = weights(told[0], "whole1", f"by_{other}")
        assert max(float((t - another[n]).abs().max()) for n, t in one.items()) > 1e-5


def test_a_reward_model_grades_the_answers_of_a_later_stage(told: Told) -> None:
    for ranks in (1, 2):
        first = rows(told[0], f"whole{ranks}", "judged")[0]
        assert first["rollout/ungraded"] == 0 and first["rollout/alike"] == 0
        assert first["rollout/reward"] != round(first["rollout/reward"], 3)
