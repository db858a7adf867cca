"""The best state on the way: which one is kept, what it is measured as, and that a resume keeps the same."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trainwright import families
from trainwright.core import loop
from trainwright.core.errors import UserError
from trainwright.core.recipe import load
from trainwright.life.jobs import jobs
from trainwright.life.run import run
from trainwright.storage.artifact import Artifact
from trainwright.storage.store import Store

BEST = 'steps = 6\neval_every = 1\nkeep = "best:loss/code"'
"""A rate that is far too high, so that the loss goes up and down, and the best state is not the last."""
WILD = '{ use = "held_out", length = 32, tokens = 300 }, { use = "adamw", lr = 1.0 }]\n'


def lives(life: Path, store: str = "store", length: str = BEST) -> Artifact:
    text = life.read_text().partition('[[stage]]\nname = "adapt"')[0]
    text = text.replace("steps = 6", length).replace('{ use = "adamw", lr = 1e-2 }, { use = "wsd" }]\n', WILD)
    (life.parent / "best.toml").write_text(text)
    return run(load(life.parent / "best.toml"), Store(life.parent / store))["base"]


def weights(made: Artifact) -> dict[str, torch.Tensor]:
    return dict(families.load(made.path, "a test").state_dict())


def same(a: Artifact, b: Artifact) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(t, right[n]) for n, t in left.items())


@pytest.mark.slow
def test_the_best_weights_are_those_of_the_step_that_measured_best(life: Path) -> None:
    made = lives(life)
    rows = [row["eval/loss/code"] for row in made.metrics()]
    best = rows.index(min(rows))
    assert best + 1 < 6, "else nothing is tested"
    assert made.figures["kept"] == {"metric": "loss/code", "value": rows[best], "step": best + 1}
    assert made.figures["evaluation"]["loss/code"] == rows[best] and made.figures["steps"] == 6
    assert same(made, lives(life, length=f"steps = {best + 1}\neval_every = 1"))
    assert not same(made, lives(life, length="steps = 6\neval_every = 1"))


@pytest.mark.slow
@pytest.mark.parametrize("at", [2, 5])
def test_a_run_that_resumes_keeps_the_same_to_the_bit(life: Path, monkeypatch: pytest.MonkeyPatch, at: int
                                                      ) -> None:
    """Killed behind a save of the best state that no checkpoint knows of, and before one."""
    whole, step, died = lives(life, "whole"), loop.Train.step, list[int]()

    def dies(self: loop.Train) -> None:
        step(self)
        if self.ctx.step == at and not died:
            died.append(at)
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Train, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        lives(life)
    again = lives(life)
    assert died and same(whole, again) and again.figures["kept"] == whole.figures["kept"]


@pytest.mark.parametrize(("old", "new", "sentence"), [
    ("best:loss/code", "first", 'keep is "last" or "best:METRIC", such as "best:loss/code", not \'first\''),
    ("best:loss/code", "best:delight", "the name 'delight' does not say which way is better"),
    ("best:loss/code", "best:accuracy/code", r"no evaluator of the stage makes this number; they make bits"),
    ("eval_every = 1\n", "", r"nothing is measured on the way; say eval_every = STEPS"),
])
def test_what_cannot_be_kept_is_said_before_the_run(life: Path, old: str, new: str, sentence: str) -> None:
    text = life.read_text().replace("steps = 6", BEST.replace(old, new))
    life.write_text(text.replace('{ use = "adamw", lr = 1e-2 }, { use = "wsd" }]\n', WILD, 1))
    with pytest.raises(UserError, match=sentence):
        jobs(load(life), Store(life.parent / "store"))


def test_a_domain_that_the_corpus_lacks_is_found_at_the_first_measurement(life: Path) -> None:
    with pytest.raises(UserError, match=r"keep = 'best:loss/cod': the evaluations make no such number; "):
        lives(life, length=BEST.replace("loss/code", "loss/cod"))


def test_a_stage_that_watches_says_so_too(life: Path) -> None:
    settings: dict[str, Any] = {"metric": '"loss/code"', "patience": 1}
    early = ", ".join(f"{k} = {v}" for k, v in settings.items())
    made = lives(life, length="steps = 6\neval_every = 1")
    rows = [row["eval/loss/code"] for row in made.metrics()]
    worse = next(i for i in range(1, 6) if rows[i] >= min(rows[:i]))
    text = (life.parent / "best.toml").read_text()
    text = text.replace('{ use = "held_out"', f'{{ use = "early_stop", {early} }}, {{ use = "held_out"', 1)
    (life.parent / "early.toml").write_text(text)
    stopped = run(load(life.parent / "early.toml"), Store(life.parent / "store"))["base"]
    assert stopped.figures["steps"] == worse + 1 and "for 1 measurement (best" in stopped.figures["stopped"]
    assert stopped.figures["evaluation"]["loss/code"] == rows[worse]
