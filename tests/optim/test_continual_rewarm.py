"""Warmed again, decayed again, and old rows replayed: the corners of the curves, and the share of the
rows."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
from torch import nn

from trainwright.check import tiny
from trainwright.core.context import Context, View
from trainwright.core.errors import UserError
from trainwright.core.method import Set
from trainwright.core.settings import make
from trainwright.data.order.pack import Pack
from trainwright.optim.continual_rewarm import ContinualRewarm
from trainwright.optim.cosine import Cosine

REPLAY = {"replay": 0.25, "old": ("prose",), "new": ("code", "chat")}
NONE = {"replay": 0.0}


def factors(method: ContinualRewarm | Cosine, steps: int) -> list[float]:
    """The factor of the learning rate at each step of a run."""
    knobs, seen = {"lr": 1.0}, []
    for step in range(steps):
        for command in method.tick(View(step, steps, {}, dict(knobs)), {}):
            assert isinstance(command, Set)
            knobs[command.knob] = command.value
        seen.append(knobs["lr"])
    return seen


def test_warmed_and_decayed_again_by_hand() -> None:
    """2 up, then 4 down to a tenth: 1, 0.1 + 0.45 (1 + cos(pi / 4)), the middle, and so on."""
    falling = [0.1 + 0.45 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]
    assert falling[2] == pytest.approx(0.55)
    assert factors(ContinualRewarm(**NONE, warmup=2), 6) == pytest.approx([0.5, 1.0, *falling])
    assert factors(ContinualRewarm(**NONE, warmup=0.05), 40) == pytest.approx(
        factors(Cosine(warmup=0.05, final=0.1), 40)
    )


@pytest.mark.parametrize(
    ("shape", "middle"),
    [("cosine", 0.7), ("inverse_sqrt", 1 - 0.6 * (1 - 1 / math.sqrt(6)) / (1 - 1 / math.sqrt(11)))],
)
def test_the_infinite_schedule_by_hand(shape: str, middle: float) -> None:
    """2 up, 2 down to 0.4, constant, and 2 of annealing: 0.4, then the geometric mean of 0.4 and 0.1."""
    method = ContinualRewarm(
        **NONE, schedule="infinite", shape=shape, warmup=2, cooldown=2, constant=0.4, anneal=2
    )
    assert factors(method, 10) == pytest.approx([0.5, 1.0, 1.0, middle, 0.4, 0.4, 0.4, 0.4, 0.4, 0.2])


def test_the_infinite_schedule_goes_on_where_it_was() -> None:
    """A stage without warm-up and cooldown stays at the constant rate; its length is not in the curve."""
    method = ContinualRewarm(**NONE, schedule="infinite", warmup=3, cooldown=5)
    assert factors(method, 20) == factors(method, 40)[:20]
    assert factors(ContinualRewarm(**NONE, schedule="infinite", warmup=0, cooldown=0), 5) == [0.5] * 5


def test_the_old_domains_get_their_share_of_the_rows(tmp_path: Path) -> None:
    """The knob says it exactly, and so do the rows but for the draw (within three deviations); the number of
    steps stays."""
    method = ContinualRewarm(**REPLAY)
    (mixture,) = [c for c in method.tick(View(0, 9, {}, {"lr": 1.0}), {}) if c.knob == "mixture"]
    assert mixture.value == {"prose": 0.25, "code": 0.375, "chat": 0.375}
    knobs = {"lr": 1.0, "mixture": mixture.value}
    assert not [c for c in method.tick(View(1, 9, {}, knobs), {}) if c.knob == "mixture"]
    on = method.tick(View(5, 9, {}, {"lr": 1.0, "mixture": {"prose": 1.0}}), {})
    assert mixture in on, "a run that goes on with a state of another mixture"
    data, ctx = Pack(length=32), tiny.context(tmp_path)
    ctx.batch_rows, ctx.knobs = 600, {"mixture": mixture.value}
    batch = data.next(pytest.fail, data.init(nn.Identity(), ctx), ctx)
    seen = Counter(batch["domains"][int(d)] for d in batch["domain"][:, 0])
    assert seen.total() == 600 and seen["prose"] == pytest.approx(150, abs=3 * math.sqrt(600 * 0.25 * 0.75))
    assert seen["code"] == pytest.approx(225, abs=3 * math.sqrt(600 * 0.375 * 0.625))


def test_it_owns_the_mixture_only_if_it_replays() -> None:
    assert ContinualRewarm(**REPLAY).claims(nn.Module()) == {"knob:lr", "knob:mixture"}
    assert ContinualRewarm(**NONE).claims(nn.Module()) == {"knob:lr"}


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"replay": 1.0},
        {"replay": 0.1, "old": ["prose"]},
        {"replay": 0.0, "old": ["prose"], "new": ["code"]},
        {"replay": 0.1, "old": ["code"], "new": ["code"]},
        NONE | {"constant": 0.0},
        NONE | {"anneal": 0.1, "final": 0.0},
        NONE | {"warmup": 1.5},
        NONE | {"final": 2.0},
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"replay|old and new|constant|final|warmup"):
        make(ContinualRewarm, wrong, "here")


def test_a_stage_that_is_too_short_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"warmup = 4 \+ cooldown = 5 \+ anneal = 3 steps do not fit into a stage of 10"
    ):
        ContinualRewarm(**NONE, schedule="infinite", warmup=4, cooldown=5, anneal=3).init(
            nn.Module(), Context(steps=10)
        )
    assert ContinualRewarm(**NONE, warmup=4, cooldown=5, anneal=3).init(nn.Module(), Context(steps=10)) == {}
