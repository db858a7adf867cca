"""Skill-It: shares by hand, a planted order of skills that is found and followed, and a real stage."""
from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from trainwright.check import tiny
from trainwright.core.context import Context, View
from trainwright.core.errors import UserError
from trainwright.core.method import Set, State
from trainwright.core.settings import make
from trainwright.data.order.skill_it import SkillIt, learned
from trainwright.evaluate.held_out import HeldOut

PLANTED = {"letters": {"words"}, "words": {"texts"}, "texts": set[str](), "sums": set[str]()}
SKILLS = ("texts", "letters", "sums", "words")


class World:
    """Learners of skills: one learns a skill by training on it, slowly as long as what it builds on is not
    known, and half as fast by training on what it builds on."""

    def __init__(self, seed: int) -> None:
        self.known, self.noise = dict.fromkeys(SKILLS, 0.0), np.random.default_rng(seed)

    def losses(self) -> dict[str, float]:
        return {f"eval/loss/{s}": 4 * math.exp(-x) * (1 + 0.002 * self.noise.standard_normal())
                for s, x in self.known.items()}

    def learn(self, shares: dict[str, float]) -> None:
        before, whole = dict(self.known), sum(shares.values())
        for skill in SKILLS:
            below = [s for s, above in PLANTED.items() if skill in above]
            ready = math.prod(1 - 0.8 * math.exp(-before[s]) for s in below)
            rate = shares.get(skill, 0.0) * ready + sum(0.5 * shares.get(s, 0.0) * ready for s in below)
            self.known[skill] += 0.03 * rate / whole


def run(method: SkillIt, steps: int, seed: int = 0,
        every: int = 5) -> tuple[list[dict[str, float]], State, World]:
    """The mixture at each step, and what came of it."""
    world, state = World(seed), method.init(nn.Module(), Context(steps=steps))
    notes: dict[str, float] = {}
    mixtures: list[dict[str, float]] = []
    for step in range(steps):
        for command in method.tick(View(step, steps, notes, {}), state):
            assert isinstance(command, Set) and command.knob == "mixture"
            shares = command.value
        mixtures.append(shares)
        world.learn(shares)
        notes = world.losses() if (step + 1) % every == 0 else {}
    return mixtures, state, world


def test_shares_by_hand() -> None:
    """a helps b: its share follows the loss of b, and not the other way round."""
    method = SkillIt(skills=("a", "b"), graph={"a": {"b": 0.5}}, eta=0.2)
    first = method.mixture(method.graph, {"a": [], "b": []}, first=True)
    assert first == pytest.approx({"a": math.exp(0.3) / (math.exp(0.3) + math.exp(0.2)), "b": 1 - first["a"]})
    told = method.mixture(method.graph, {"a": [1.0, 0.5], "b": [3.0, 2.0, 1.0]}, first=False)
    raw = {"a": math.exp(0.2 * (1.5 + 0.5 * 6)), "b": math.exp(0.2 * 6)}
    assert told == pytest.approx({n: v / sum(raw.values()) for n, v in raw.items()})
    aimed = SkillIt(skills=("a", "b"), graph={"a": {"c": 0.5}}, targets=("c",), eta=0.2)
    told = aimed.mixture(aimed.graph, {"a": [9.0], "b": [9.0], "c": [3.0, 5.0]}, first=False)
    expected = math.exp(0.2 * 0.5 * 4)
    assert told["a"] / told["b"] == pytest.approx(expected), "the mean over the window, and the target alone"


def test_only_the_window_counts() -> None:
    method, state = SkillIt(skills=("a",), graph={"a": {"a": 1.0}},
                            window=2), {"shared": {"losses": {"a": []}, "graph": {}}}
    for step in range(1, 5):
        list(method.tick(View(step, 1000, {"eval/loss/a": float(step)}, {}), state))
    assert state["shared"]["losses"] == {"a": [3.0, 4.0]}


def test_edges_by_hand() -> None:
    """Training on a: -1 on a, -0.5 on b; training on b: +0.2 on a (forgotten), -1 on b."""
    marks = [[3.0, 3.0], [2.0, 2.5], [2.2, 1.5]]
    assert learned(marks, ("a", "b"), ("a", "b"), 0.3) == {"a": {"b": 0.5}, "b": {}}
    assert learned(marks, ("a", "b"), ("a", "b"), 0.6) == {"a": {}, "b": {}}


@pytest.mark.parametrize("seed", range(3))
def test_the_planted_edges_are_found(seed: int) -> None:
    _, state, _ = run(SkillIt(skills=SKILLS, probe=10), 60, seed)
    assert {i: set(row) for i, row in state["shared"]["graph"].items()} == PLANTED


def test_sampling_goes_to_the_prerequisite_first() -> None:
    """While all are hard most goes to what others build on; what builds on it follows. It comes to lower
    losses than sampling alike."""
    graph = {skill: dict.fromkeys(above, 0.5) for skill, above in PLANTED.items()}
    mixtures, _, world = run(SkillIt(skills=SKILLS, graph=graph, update=5), 200)
    early, late = mixtures[25], mixtures[-1]
    assert early["letters"] + early["words"] > 0.8 and early["letters"] > 4 * early["texts"]
    assert late["letters"] + late["words"] < 0.55 and late["texts"] > 3 * early["texts"]
    alike = World(0)
    for _ in range(200):
        alike.learn(dict.fromkeys(SKILLS, 1.0))
    assert sum(world.losses().values()) < 0.96 * sum(alike.losses().values())


def test_probes_come_one_after_the_other() -> None:
    mixtures, _, _ = run(SkillIt(skills=SKILLS, probe=10, update=10), 60)
    assert mixtures[:10] == [dict.fromkeys(SKILLS, 1.0)] * 10
    assert [list(m) for m in mixtures[10:50:10]] == [[s] for s in SKILLS] and set(mixtures[50]) == set(SKILLS)


def test_a_stage_measures_and_learns(tmp_path: Path) -> None:
    method = SkillIt(skills=("prose", "code"), probe=2, update=1)
    run = tiny.stage(method, tmp_path, eval_every=2, more=[HeldOut(split="tune", tokens=60, length=32)])
    run.run()
    shared = run.states["skill_it.1"]["shared"]
    assert len(shared["marks"]) == 3 and all(len(v) == 3 for v in shared["losses"].values())
    assert set(run.ctx.knobs["mixture"]) == {"prose", "code"}
    assert sum(run.ctx.knobs["mixture"].values()) == pytest.approx(1)


def test_mistakes_are_said(tmp_path: Path) -> None:
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("skills", {"skills": []}), ("skills", {"skills": ["a", "a"]}),
        ("'c', which is none", {"graph": {"a": {"c": 1.0}}}),
        ("not trained", {"graph": {"c": {"a": 1.0}}, "targets": ["c"]}),
        ("0 or more", {"graph": {"a": {"b": -1.0}}}),
        ("window", {"window": 0}), ("metric", {"metric": "loss"}), ("update", {"update": 1.5})]
    for told, settings in wrong:
        with pytest.raises(UserError, match=told):
            make(SkillIt, {"skills": ["a", "b"]} | settings, "here")
    with pytest.raises(UserError, match="probe shorter"):
        SkillIt(skills=("a", "b"), probe=0.5).init(nn.Module(), Context(steps=10))
    with pytest.raises(UserError, match=r"eval/loss/prose.*eval_every"):
        tiny.stage(SkillIt(skills=("prose", "code"), probe=2), tmp_path).run()
    with pytest.raises(UserError, match="knows no loss of prose"):
        tiny.stage(SkillIt(skills=("prose",), graph={"prose": {"prose": 1.0}}, update=2), tmp_path).run()
