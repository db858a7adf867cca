"""Every two methods of a training stage work together, or are refused with a reason. A sample each day;
all with `make pairs`."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import torch

from trainwright.check import pairs

pytestmark = pytest.mark.slow
MANY = 120


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("part", range(4))
def test_pairs_of_the_day(part: int) -> None:
    found = pairs.try_all(pairs.sample(MANY, datetime.date.today().toordinal())[part::4])
    assert len(found) == MANY // 4
    broken = [f"{p.a} + {p.b}: {p.why}" for p in found if p.verdict == "broken"]
    assert not broken, "\n".join(broken)
    assert all(p.why.strip() for p in found if p.verdict.startswith("refused"))


def test_what_works_and_what_is_refused() -> None:
    assert pairs.outcome("clip_gradients", "lora") == ("clip_gradients", "lora", "works", "")
    two = pairs.outcome("cosine", "linear")
    assert two.verdict == "refused" and "lr" in two.why
    assert pairs.outcome("adamw", "sgd_sai").verdict == "refused"


def test_a_method_of_two_kinds_stands_once(tmp_path: Path) -> None:
    """One that makes batches and scores them, and one that is surgery and its own optimizer."""
    for name in ("phf", "spiel"):
        names = [
            m.name for m in pairs.stage(pairs._make(name), pairs._make("clip_gradients"), tmp_path).methods
        ]
        assert names.count(name) == 1


def test_what_diverges_or_does_not_resume_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainwright.core.errors import UserError
    from trainwright.core.loop import Diverged, Stopped, Train

    def fails(error: Exception):
        def run(self, until=None, on_step=None):
            raise error
        return run

    monkeypatch.setattr(Train, "run", fails(Diverged("the loss is nan")))
    assert pairs.outcome("clip_gradients", "lora").verdict == "broken"
    monkeypatch.setattr(Train, "run", fails(UserError("not with this one")))
    assert pairs.outcome("clip_gradients", "lora").verdict == "refused late"
    monkeypatch.setattr(Train, "run", fails(Stopped("grpo stopped the stage")))
    assert pairs.outcome("grpo", "neftune").verdict == "refused late"


def test_each_pair_once() -> None:
    every = pairs.couples(["b", "a", "c"])
    assert every == [("a", "b"), ("a", "c"), ("b", "c")]
    assert pairs.sample(5, 1) == pairs.sample(5, 1) != pairs.sample(5, 2)


def test_one_that_changes_between_checkpoints_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method that remembers outside of its state breaks its pair."""
    from trainwright.core.method import Controller, Set

    ticks: list[int] = []

    class Counts(Controller):
        """Sets the learning rate by what no checkpoint has."""

        def claims(self, model):
            return {"knob:lr"}

        def tick(self, view, state):
            ticks.append(view.step)
            return [Set("lr", 1.0 / len(ticks))]

    monkeypatch.setattr(pairs, "_make", lambda use: Counts() if use == "counts" else pairs.registry.create(
        {"use": use, **pairs.load(use).example}, Path(), "test"))
    found = pairs.outcome("counts", "clip_gradients")
    assert found.verdict == "broken" and "interrupted" in found.why
