"""Domain upsampling: the knob by hand, and rows of a run that follow it."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainwright import families
from trainwright.check import tiny
from trainwright.core.context import Context, View
from trainwright.core.errors import UserError
from trainwright.core.method import Set
from trainwright.core.recipe import parse, read
from trainwright.core.settings import make
from trainwright.data.order.domain_upsampling import DomainUpsampling
from trainwright.life import jobs
from trainwright.life.run import run
from trainwright.storage.store import Store

LAST, BASE = {"prose": 1.0, "code": 3.0}, {"prose": 1.0}


def knob(method: DomainUpsampling, steps: int) -> tuple[list[Any], int]:
    """The mixture at each step, and how often it was set."""
    knobs: dict[str, Any] = {}
    seen, sets = [], 0
    for step in range(steps):
        for command in method.tick(View(step, steps, {}, dict(knobs)), {}):
            assert isinstance(command, Set)
            knobs[command.knob] = command.value
            sets += 1
        seen.append(knobs.get("mixture"))
    return seen, sets


def test_the_knob_by_hand() -> None:
    assert knob(DomainUpsampling(weights=LAST, base=BASE, duration=0.2), 10) == ([BASE] * 8 + [LAST] * 2, 2)
    assert knob(DomainUpsampling(weights=LAST, duration=3), 10) == ([None] * 7 + [LAST] * 3, 1)
    assert knob(DomainUpsampling(weights=LAST, base=BASE, duration=0.0), 4) == ([BASE] * 4, 1)


def test_the_last_part_may_be_all_of_it_and_one_step_is_one_step() -> None:
    assert knob(DomainUpsampling(weights=LAST, base=BASE, duration=1.0), 50) == ([LAST] * 50, 1)
    assert knob(DomainUpsampling(weights=LAST, base=BASE, duration=1), 50) == ([BASE] * 49 + [LAST], 2)


def last_parts(life: Path, base: list[dict[str, Any]], last: list[dict[str, Any]]) -> dict[str, Any]:
    """The weights after a base mixture, after the last part that is run from a state of it, and after one run
    with domain upsampling."""
    table, _ = read(life)
    corpus, stage, *_ = table["stage"]
    stage |= {"steps": 10}
    whole = DomainUpsampling(weights=LAST, base=base[0]["weights"] if base else {}, duration=0.2)
    stages = [stage | {"name": "base", "snapshots": [0.8], "methods": [*stage["methods"], *base]},
              stage | {"name": "on", "methods": [*stage["methods"], *last],
                       "from": {"state": "base@0.8", "data": "corpus"}},
              stage | {"name": "whole", "methods": [*stage["methods"], jobs.table(whole, whole.name)]}]
    del stages[1]["model"]
    made = run(parse({"seed": 3, "stage": [corpus, *stages]}, life), Store(life.parent / "store"))
    return {name: dict(families.load(made[name].path, "a test").state_dict())
            for name in ("base", "on", "whole")}


@pytest.mark.slow
@pytest.mark.parametrize("base", [[], [{"use": "mixture", "weights": BASE}]], ids=["as_it_is", "prose"])
def test_the_last_part_from_a_state_is_one_run_to_the_bit(life: Path, base: list[dict[str, Any]]) -> None:
    found = last_parts(life, base, [{"use": "mixture", "weights": LAST}])
    assert all(torch.equal(t, found["whole"][n]) for n, t in found["on"].items())
    assert not all(torch.equal(t, found["base"][n]) for n, t in found["on"].items())


def test_it_owns_the_mixture() -> None:
    assert DomainUpsampling(weights=LAST).claims(nn.Module()) == {"knob:mixture"}


def test_the_rows_of_a_run_follow_it(tmp_path: Path) -> None:
    """Before the last three of nine steps there is prose alone, then there is no prose."""
    run = tiny.stage(DomainUpsampling(weights={"code": 1.0}, base=BASE, duration=3), tmp_path)
    seen = []
    run.run(on_step=lambda row: seen.append({n
                                             for n in ("prose", "code", "chat") if f"train_loss/{n}" in row}))
    assert seen == [{"prose"}] * 6 + [{"code"}] * 3


def test_mistakes_are_said() -> None:
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("weights", {"weights": {}}), ("weights", {"weights": {"a": -1.0, "b": 2.0}}),
        ("base", {"weights": LAST, "base": {"a": 0.0}}), ("duration", {"weights": LAST, "duration": 1.5})]
    for name, settings in wrong:
        with pytest.raises(UserError, match=name):
            make(DomainUpsampling, settings, "here")
    with pytest.raises(UserError, match="do not fit"):
        DomainUpsampling(weights=LAST, duration=20).init(nn.Module(), Context(steps=9))
