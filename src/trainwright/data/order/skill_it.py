"""Skill-It: samples each skill (a domain of the corpus) by how much it helps the skills that are still hard.

"Skill-it! A Data-Driven Skills Framework for Understanding and Training Language Models" (arXiv
2307.14430), after the authors' code. A[i, j] says how much training on skill i helps skill j: 1 on the
diagonal, 0.5 if i is a prerequisite of j, else 0. Every ``update`` steps the share of skill i becomes

    p_i  proportional to  exp(eta sum_j A[i, j] W_j),   W_j = sum of the last ``window`` held-out losses of j

(all W_j are 1 before the first step). No weight carries over. With ``targets`` the sum is over those skills
alone, and W_j is the mean over the window, as in that code; a target need not be among ``skills`` (it is
then measured but not trained on).

Without ``graph``, it is learned first from a short run on each skill: ``probe`` steps on all skills alike,
then as many on each alone, one after the other. There is an edge from i to j if training on i lowers the
loss of j by more than ``edge`` times what training on j itself does (of the largest fall, for a target that
is not trained). The paper learns it in runs from one start, whose code is not released. Here it is the
beginning of the run itself: no step is lost, but a skill probed late has profited from those before.

The losses are those of an evaluator: ``held_out`` with ``split = "tune"``, and ``eval_every`` a divisor of
``probe`` and of ``update``. More evaluations between two updates make the window shorter in steps. Training
losses (``train_loss/{}``) are noisy for rare skills and make them rarer.

Not from random weights with short probes: there everything helps everything.

Errors: a graph that names no skill; numbers out of range; a stage that measures no loss where one is
needed. Owns the knob ``mixture``. State: ``shared``: losses of the window and between the probes, the
graph. """
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import field
from typing import Any, ClassVar

from torch import nn

from trainwright.core.context import Context, View
from trainwright.core.errors import UserError, suggest
from trainwright.core.method import Command, Controller, Set, State
from trainwright.lm.schedules import check_parts, steps_of

EDGE = 0.5
"""Weight of a learned edge."""
Graph = dict[str, dict[str, float]]


class SkillIt(Controller):
    """Sets the knob ``mixture`` by multiplicative weights over a graph of skills."""

    skills: tuple[str, ...]
    """Domains to train on."""
    graph: Graph = field(default_factory=dict)
    """How much training on the first helps the second: ``{ easy = { hard = 0.5 } }``; default: learned."""
    targets: tuple[str, ...] = ()
    """Skills that are to get better; all if none is named."""
    eta: float = 0.5
    """How sharply the shares follow the losses."""
    update: int | float = 0.1
    """Steps from one mixture to the next: a share of the stage's (0.2, 1.0) or a number of
    steps (20)."""
    window: int = 3
    """Evaluations that count."""
    probe: int | float = 0.05
    """Steps on each skill alone, where the graph is learned: a share of the stage's or a number of steps."""
    edge: float = 0.3
    """What a prerequisite must lower a loss by, as a share of what training on the skill itself does."""
    metric: str = "eval/loss/{}"
    """Number of the log that is a skill's loss; ``{}`` stands for the skill."""
    example: ClassVar[dict[str, Any]] = {
        "skills": ["prose", "code"], "graph": {"prose": {"code": 0.5}}, "update": 2,
        "metric": "train_loss/{}"}

    def __post_init__(self) -> None:
        if not self.skills or len(set(self.skills)) < len(self.skills):
            raise ValueError(f"skills must be domains, each once, not {list(self.skills)}")
        for name in (*self.graph, *(n for row in self.graph.values() for n in row)):
            if name not in self.columns:
                raise ValueError(f"graph names {name!r}, which is none of skills or targets"
                                 f"{suggest(name, self.columns)}")
        for name in self.graph:
            if name not in self.skills:
                raise ValueError(f"graph has edges from {name!r}, which is not trained on (skills)")
        if not all(math.isfinite(w) and w >= 0 for row in self.graph.values() for w in row.values()):
            raise ValueError(f"graph must have weights of 0 or more, not {self.graph}")
        if not self.eta >= 0 or self.window < 1 or not 0 <= self.edge < 1 or "{}" not in self.metric:
            raise ValueError("eta must be 0 or more, window 1 or more, edge from 0 to below 1, and metric "
                             "must have {}")
        check_parts(update=self.update, probe=self.probe)

    @property
    def columns(self) -> tuple[str, ...]:
        """The skills that are measured."""
        return (*self.skills, *(n for n in self.targets if n not in self.skills))

    def claims(self, model: nn.Module) -> set[str]:
        return {"knob:mixture"}

    def init(self, model: nn.Module, ctx: Context) -> State:
        begin = self.begin(ctx.steps)
        if begin >= ctx.steps:
            raise UserError(f"skill_it: to learn the graph takes {begin} of the stage's {ctx.steps} steps, "
                            f"probe on each of {len(self.skills)} skills and on all: make probe shorter, or "
                            "say the graph.")
        return {"shared": {"losses": {name: [] for name in self.columns}, "marks": [],
                           "graph": dict(self.graph)}}

    def begin(self, steps: int) -> int:
        """The step of the first mixture."""
        return 0 if self.graph else (len(self.skills) + 1) * max(1, steps_of(self.probe, steps))

    def tick(self, view: View, state: State) -> Iterable[Command]:
        shared, begin = state["shared"], self.begin(view.steps)
        for name in self.columns:
            if (told := view.notes.get(self.metric.replace("{}", name))) is not None:
                shared["losses"][name] = [*shared["losses"][name], told][-self.window:]
        length, since = max(1, steps_of(self.probe, view.steps)), view.step - begin
        if begin and since <= 0 and view.step % length == 0:
            if view.step:
                self.need(view, self.columns)
                shared["marks"].append([view.notes[self.metric.replace("{}", name)] for name in self.columns])
            if since:
                alone = self.skills[view.step // length - 1:][:1] if view.step else self.skills
                yield Set("mixture", dict.fromkeys(alone, 1.0))
            else:
                shared["graph"] = learned(shared["marks"], self.skills, self.columns, self.edge)
        if since >= 0 and since % max(1, steps_of(self.update, view.steps)) == 0:
            yield Set("mixture", self.mixture(shared["graph"], shared["losses"], first=view.step == 0))

    def need(self, view: View, names: Sequence[str]) -> None:
        """Raise a UserError where the last step did not measure these skills."""
        lost = [key for n in names if (key := self.metric.replace("{}", n)) not in view.notes]
        if lost:
            raise UserError(f"skill_it needs {', '.join(lost)} after step {view.step}: name an evaluator "
                            'that measures it (held_out with split = "tune"), and set eval_every so that it '
                            "divides probe and update.")

    def mixture(self, graph: Graph, losses: dict[str, list[float]], first: bool) -> dict[str, float]:
        """The shares of the skills."""
        wanted = self.targets or self.columns
        if not first and (lost := [n for n in wanted if not losses[n]]):
            raise UserError(f"skill_it knows no loss of {', '.join(lost)} yet ({self.metric}): name an "
                            'evaluator of it (held_out with split = "tune"), and set eval_every so that it '
                            "measures before the first update.")
        hard = {n: 1.0 if first else sum(losses[n]) / (len(losses[n]) if self.targets else 1) for n in wanted}
        gain = {i: self.eta * sum(graph.get(i, {}).get(j, float(i == j)) * w for j, w in hard.items())
                for i in self.skills}
        most = max(gain.values())
        raw = {i: math.exp(g - most) for i, g in gain.items()}
        return {i: w / sum(raw.values()) for i, w in raw.items()}


def learned(marks: Sequence[Sequence[float]], skills: Sequence[str], columns: Sequence[str],
            edge: float) -> Graph:
    """The edges, from the losses of ``columns`` before the first probe and after each."""
    fall = {i: {j: marks[k][c] - marks[k + 1][c] for c, j in enumerate(columns)}
            for k, i in enumerate(skills)}
    own = {j: fall[j][j] if j in fall else max(row[j] for row in fall.values()) for j in columns}
    return {i: {j: EDGE for j in columns if j != i and own[j] > 0 and row[j] > edge * own[j]}
            for i, row in fall.items()}
