"""The bandit of ``quad``: clusters of documents as arms, pulled a block at a time."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainwright.core.errors import UserError
from trainwright.corpus.tokens import uniform

Look = Callable[[list[str]], dict[str, float]]
"""Measures the influence of documents, by their ids."""


@dataclass
class Queue:
    """The documents of a cluster, in the order in which they are drawn."""

    ids: list[str]
    block: int
    scored: float
    begin: int = 0

    def next(self) -> list[str]:
        """The next block; empty where what is left is too little to measure a share of it."""
        left = self.ids[self.begin:self.begin + self.block]
        return left if math.floor(self.scored * len(left) + 1e-9) else []

    def sample(self) -> list[str]:
        """The documents of the next block that stand for it."""
        block = self.next()
        return block[:math.floor(self.scored * len(block) + 1e-9)]

    def draw(self) -> list[str]:
        """Take the next block off the queue."""
        block = self.next()
        self.begin += len(block)
        return block


@dataclass
class Scores:
    """What is known of the clusters: a reward is shared by those that are near to its own."""

    near: NDArray[np.float64]
    """[clusters, clusters]: the part of a reward of the first that the second gets."""
    exploration: float
    rewards: list[float] = field(default_factory=list)
    touched: int = 0

    def __post_init__(self) -> None:
        self.sum, self.count = np.zeros(len(self.near)), np.zeros(len(self.near))

    def add(self, cluster: int, reward: float) -> None:
        part = self.near[cluster]
        self.rewards.append(reward)
        self.touched += int((part > 0).sum())
        self.count += part > 0
        self.sum += part * reward

    def values(self) -> NDArray[np.float64]:
        """Mean reward and bonus of each cluster."""
        alpha = self.exploration * float(np.std(self.rewards)) if self.rewards else 0.0
        bonus = np.sqrt(2 * math.log(max(self.touched, 1)) / (self.count + 1))
        return self.sum / np.maximum(self.count, 1) + alpha * bonus


def queues(ids: NDArray[np.object_], label: NDArray[np.int64], clusters: int, block: int, scored: float,
           seed: int) -> list[Queue]:
    """The documents of each cluster in an order that seed and ids make.

    Raises:
        UserError: no cluster has a block of which one document could be measured.
    """
    place = np.array([uniform(name, f"quad/{seed}") for name in ids])
    order = np.argsort(place, kind="stable")
    made = [Queue(ids[order[label[order] == number]].tolist(), block, scored) for number in range(clusters)]
    if not any(queue.sample() for queue in made):
        largest, needed = max(len(queue.ids) for queue in made), math.ceil(1 / scored - 1e-9)
        raise UserError(f"quad: the largest of the {clusters:,} clusters has {largest:,} documents, and it "
                        f"takes {needed:,} to measure one of them (scored = {scored}): ask for fewer "
                        "clusters.")
    return made


def nearness(centre: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """1 - d/D for centres nearer than D, ``radius`` mean distances of two; 0 for others, and 1 for itself."""
    from scipy.spatial.distance import cdist
    distance = cdist(centre, centre)
    many = len(centre)
    most = radius * float(distance.sum()) / max(many * (many - 1), 1)
    near = np.maximum(0.0, 1 - distance / most) if most > 0 else np.zeros_like(distance)
    np.fill_diagonal(near, 1.0)
    return near


class Played(NamedTuple):
    """What a game came to."""

    chosen: list[str]
    measured: int
    """Documents whose influence was measured."""
    seen: int
    """Clusters of which any was."""


def play(queues: Sequence[Queue], scores: Scores, look: Look, arms: int, offset: float | None,
         budget: int) -> Played:
    """Choose ``budget`` documents."""
    known = look([name for queue in queues for name in queue.sample()])
    first = {i: _mean(queue, known) for i, queue in enumerate(queues) if queue.next()}
    least = offset if offset is not None else float(np.mean(list(first.values())))
    for i, mean in first.items():
        scores.add(i, mean - least)
    taken: list[str] = []
    passed: list[tuple[float, list[str]]] = []
    while len(taken) < budget and (open := [i for i, queue in enumerate(queues) if queue.next()]):
        values = scores.values()
        pulled = sorted(open, key=lambda i: -values[i])[:arms]
        unknown = [name for i in pulled for name in queues[i].sample() if name not in known]
        known |= look(unknown) if unknown else {}
        for i in pulled:
            reward = _mean(queues[i], known) - least
            # the first look at it was counted already
            if queues[i].begin:
                scores.add(i, reward)
            if reward > 0:
                taken += queues[i].draw()
            else:
                passed.append((reward, queues[i].draw()))
    passed += [(float(value), queue.ids[queue.begin:])
               for value, queue in zip(scores.values(), queues, strict=True)]
    taken += [name for _, block in sorted(passed, key=lambda one: -one[0]) for name in block]
    return Played(taken[:budget], len(known), len(first))


def _mean(queue: Queue, known: dict[str, float]) -> float:
    return float(np.mean([known[name] for name in queue.sample()]))
