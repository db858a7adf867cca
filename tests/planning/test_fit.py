"""What is proposed where memory is short: in which order, what is tried, and when nothing fits."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainwright.core import hardware
from trainwright.core.recipe import Recipe, load
from trainwright.life.jobs import Job
from trainwright.life.run import run
from trainwright.planning import fit
from trainwright.planning.fit import Changes, Proposal, options, propose
from trainwright.planning.probe import Point, Probe, Probes
from trainwright.stages.train import TrainStage
from trainwright.storage.store import Store

STAGE = TrainStage(name="base", steps=1, model={"type": "llama"})
PROCESS, ROW, GRADIENTS = 1e9, 1e8, 2e8


def test_what_changes_no_result_comes_first() -> None:
    finer, checkpointed, fewer = options(STAGE, 6, 32)
    assert finer == [{}, {"accumulate": 2}, {"accumulate": 3}, {"accumulate": 6}]
    assert checkpointed == [{"checkpointing": True, **c} for c in finer]
    assert fewer == [{"checkpointing": True, "batch_tokens": 96}, {"checkpointing": True, "batch_tokens": 32}]


def test_only_what_differs_is_proposed() -> None:
    groups = options(replace(STAGE, checkpointing=True, accumulate=2, batch_size=8), 8, 32)
    assert groups == [
        [{}, {"accumulate": 4}, {"accumulate": 8}],
        [{"accumulate": 1, "batch_size": n} for n in (4, 2, 1)],
    ]
    assert options(STAGE, 1, None)[-1] == []


class Linear(Probes):
    """So much for the process, so much a row of a micro-batch, less of it with checkpointing, more
    where gradients wait."""

    tried: list[tuple[str, Changes]] = []

    def _take(self, recipe: Recipe, job: Job, store: Store) -> Probe:
        stage = job.stage
        assert isinstance(stage, TrainStage)
        self.tried.append(
            (stage.name, {"checkpointing": stage.checkpointing, "accumulate": stage.accumulate})
        )
        real = stage.batch_rows(job) // stage.accumulate
        more = GRADIENTS if stage.accumulate > 1 else 0.0
        points = [
            Point(n, PROCESS + more + n * ROW * (0.5 if stage.checkpointing else 1.0), 1.0, 0.1)
            for n in (1, max(2, real))
        ]
        return Probe(10, 10, 6.0, PROCESS - 1, tuple(points), "cpu")


@pytest.fixture
def asked(life: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is proposed for the stage ``base`` (8 rows a step) and so many bytes; its corpus is there."""
    monkeypatch.setattr(fit, "Probes", Linear)
    Linear.tried = []
    store = Store(life.parent / "store")
    text = life.read_text()
    life.write_text(text.split('[[stage]]\nname = "base"')[0])
    run(load(life), store)
    life.write_text(text.split('[[stage]]\nname = "adapt"')[0])

    def ask(limit: float) -> Proposal:
        (one,) = propose(load(life), store, limit)
        return one

    return ask


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "changes"), [
    (PROCESS + 8 * ROW, {}),
    (PROCESS + 7 * ROW, {"accumulate": 2}),
    (PROCESS + 4 * ROW, {"accumulate": 4}),                               # not 2: the gradients wait as well
    (PROCESS + 3 * ROW, {"accumulate": 8}),
    (PROCESS + 2.8 * ROW, {"checkpointing": True, "accumulate": 8}),
    (PROCESS + 2.4 * ROW, {"checkpointing": True, "batch_tokens": 128}),
    (PROCESS + 0.6 * ROW, {"checkpointing": True, "batch_tokens": 32}),
])
def test_the_first_that_fits_is_proposed(limit: float, changes: Changes, asked: Any) -> None:
    found = asked(limit)
    assert found.fits and found.changes == changes and found.figures["memory_bytes"] <= limit
    assert found.figures["seconds"] > 0 and found.stage == "base"


@pytest.mark.slow
def test_what_cannot_fit_is_not_tried(asked: Any) -> None:
    asked(PROCESS + 3 * ROW)
    assert [t["accumulate"] for _, t in Linear.tried] == [1, 4, 8, 8], (
        "4 by a line without waiting gradients; 8 once more alone"
    )


@pytest.mark.slow
def test_nothing_fits(asked: Any) -> None:
    found = asked(PROCESS + 0.4 * ROW)
    assert found.fits is False and not found.changes and "it needs 0.98 GiB at the least" in found.note
    Linear.tried.clear()
    found = asked(PROCESS - 2)
    assert (
        found.fits is False and found.note.startswith("between two steps it takes") and len(Linear.tried) == 1
    )


@pytest.mark.slow
def test_more_than_this_machine_has_is_not_tried(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 10.0)
    found = asked(1e9)
    assert (
        found.fits is None
        and found.note == "this machine has too little memory to try it"
        and not Linear.tried
    )
    found = asked(20.0)
    assert found.fits is False and not Linear.tried, "weights, gradients and states are more than 20 bytes"
