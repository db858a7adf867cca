"""Trials in processes of their own."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainwright.core.errors import UserError
from trainwright.core.recipe import Recipe, load
from trainwright.core.store import Store
from trainwright.life.jobs import Job, jobs
from trainwright.planning import predict


def base_of(life: Path) -> tuple[Recipe, Job, Store]:
    store, recipe = Store(life.parent / "store"), load(life)
    return recipe, next(j for j in jobs(recipe, store) if j.stage.name == "base"), store



def test_each_has_its_process_or_all_share_one(life: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def ask(self: Any, function: Any, *arguments: Any) -> Any:
        asked.append((self, arguments[-1]))
        return len(asked)

    monkeypatch.setattr(predict.Worker, "ask", ask)
    recipe, job, store = base_of(life)
    with predict.Trials() as trials:
        first = trials.of(recipe, job, store)
        assert trials.of(recipe, job, store) == first and len(asked) == 1, "each once"
        trials.known.clear()
        assert trials.of(recipe, job, store) != first and asked[0][0] is not asked[1][0]
    with predict.Trials(shared=True) as trials:
        for _ in range(2):
            trials.known.clear()
            trials.of(recipe, job, store)
    assert asked[2][0] is asked[3][0] and [part for _, part in asked] == [1.0, 1.0, predict.BRIEF, predict.BRIEF]


def test_a_trial_that_is_killed_is_told(life: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(self: Any, *anything: Any) -> Any:
        raise predict.Died("signal 9 (SIGKILL)")

    monkeypatch.setattr(predict.Worker, "ask", die)
    with pytest.raises(UserError, match=r"stage 'base': the process that tried .* was ended by signal 9 \(SIGKILL\)"):
        predict.Trials().of(*base_of(life))


@pytest.mark.slow
def test_a_real_one(life: Path) -> None:
    recipe, job, store = base_of(life)
    with predict.Trials(shared=True) as trials:
        told = trials.of(recipe, job, store)
    assert told.points[-1].rows == 8 and told.memory_bytes(8) > told.fixed > 2**27, "a process with torch in it"
    assert not store.root.exists(), "a plan writes nothing"
