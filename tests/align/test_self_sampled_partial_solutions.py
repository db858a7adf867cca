"""Programs and states by hand, what a buffer keeps, the three objectives, and which rows end."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from trainwright.align.self_sampled_partial_solutions import Buffer, SelfSampledPartialSolutions, run_through
from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED

GOLD = "a = 3 + 4\nb = a * 2\nanswer = b - 1"


def buffer(**settings: Any) -> Buffer:
    return Buffer.of(None, GOLD, settings.get("longer", 0))


def test_a_state_is_the_values_whatever_their_names() -> None:
    assert run_through(GOLD.splitlines()) == (["7", "14 7", "13 14 7"], "13")
    assert run_through(["x = 4 + 3", "y = x + x", "answer = 1 / 2"]) == (["7", "14 7", "1/2 14 7"], "1/2")
    for stop in (
        "b = c",
        "b = a ** 9",
        "import os",
        "b = open('x')",
        "b = a / 0",
        "b =",
        "b = 9999999999999",
        "b = 1e999",
        "a.b = 1",
        "(" * 500,
    ):
        assert run_through(["a = 7", stop, "answer = a"]) == (["7"], ""), stop
    assert run_through(["answer = 1", "b = 2"]) == (["1"], "1")


def test_right_programs_are_kept_once_and_no_longer_than_the_shortest() -> None:
    one = buffer()
    assert one.take("x = 6 + 7\nanswer = x", True) == "right"
    assert one.take(" x = 6 + 7 \nanswer = x\n", True) == "right" and len(one.programs) == 2
    assert one.take(GOLD.replace("a", "z").replace("znswer", "answer"), True) == "right"
    assert len(one.programs) == 2, "three statements where two are known to do"
    loose = buffer(longer=1)
    assert (
        loose.take("c = 1 + 1\nd = c + 5\ne = d + 6\nanswer = e", True) == "right"
        and len(loose.programs) == 2
    )


def test_a_beginning_is_as_long_as_its_states_are_known() -> None:
    one = buffer()
    assert one.take("p = 4 + 3\nq = p + p\nanswer = q", True) == "partly"
    assert one.beginnings == ["", "p = 4 + 3\nq = p + p\n"]
    assert one.take("p = 4 + 3\nz = p - 1\nanswer = z", True) == "partly"
    assert len(one.beginnings) == 2, "it begins a beginning that is kept"
    assert one.take("p = 5\nanswer = p", True) == "wrong" and one.take("answer = 7", True) == "wrong"
    assert one.take("p = 4 + 3\nq = p + p\nanswer = q - 1", True) == "right"
    assert one.beginnings == [""], "the beginning of a kept program goes"
    assert buffer().take("p = 4 + 3\nq = 9", False) == "wrong"
    assert Buffer.of(None, "no program", 0).take(GOLD, True) == "wrong"
    again = Buffer.of(one.told(), GOLD, 0)
    assert again.states == one.states and again.programs == one.programs


def test_the_documents_program_comes_first_and_a_beginning_is_not_whole() -> None:
    one = buffer()
    one.take("p = 4 + 3\nq = 9", True)
    one.take("x = 6 + 7\nanswer = x", True)
    told = one.learned(3)
    assert told[0] == (GOLD, True) and sorted(told[1:]) == [
        ("p = 4 + 3\n", False),
        ("x = 6 + 7\nanswer = x", True),
    ]
    assert one.learned(1) == [(GOLD, True)]


def test_the_objectives_by_hand() -> None:
    p = torch.tensor([[0.5, 0.25, 0.0], [0.1, 0.0, 0.0]])
    mle, mml, beta = (
        SelfSampledPartialSolutions(objective=o).loss_of(p.log())  # type: ignore[arg-type]
        for o in ("mle", "mml", "beta_mml")
    )
    assert mle.tolist() == pytest.approx([math.log(8), math.log(10)])
    assert mml.tolist() == pytest.approx([-math.log(0.75), math.log(10)])
    assert beta.tolist() == pytest.approx([-4 * math.log(0.5**0.25 + 0.25**0.25), math.log(10)], rel=1e-5)


def test_a_step_learns_all_that_is_kept_and_only_whole_programs_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = tiny.context(tiny.place())
    ctx.batch_rows, ctx.policy, ctx.tokenizer = 4, tiny.model(), tiny.tokenizer()
    method = SelfSampledPartialSolutions(domains=("chat",), length=64, new_tokens=4, most=2)
    monkeypatch.setattr(
        "trainwright.align.self_sampled_partial_solutions._gold", lambda row: "a = 3 + 4\nanswer = a"
    )
    monkeypatch.setattr(
        SelfSampledPartialSolutions,
        "_drawn",
        lambda self, *rest: ["q = 3 + 4\nr = 1", "answer = 3 + 4", "q = 1", "answer = 7"],
    )
    state = method.init(ctx.policy, ctx)
    batch = method.next(lambda: {}, state, ctx)
    assert batch["program_there"].tolist() == [[True, True], [True, True], [True, False], [True, True]]
    end = ctx.policy.generation_config.eos_token_id or ctx.tokenizer.eos_token_id
    last = [
        [int(t[t != UNTRAINED][-1]) for t in row if (t != UNTRAINED).any()]
        for row in batch["program_targets"]
    ]
    assert [[one == end for one in row] for row in last] == [
        [True, False],
        [True, True],
        [True],
        [True, True],
    ]
    assert ctx.notes["self_sampled/right"][0][0] == 0.5 and ctx.notes["self_sampled/partly"][0][0] == 0.25
    loss = method.loss(ctx.policy, batch, state, ctx)
    ids = batch["program_ids"][2, 0]
    width = int((batch["program_targets"][2, 0] != UNTRAINED).nonzero().max()) + 2
    logp = (
        ctx.policy(input_ids=ids[None, :width])
        .logits[0, :-1]
        .log_softmax(-1)
        .gather(1, ids[1:width, None])[:, 0]
    )
    learned = batch["program_targets"][2, 0, : width - 1] != UNTRAINED
    whole = -float(logp.detach()[learned].sum())
    assert float(loss[2].detach()) == pytest.approx(whole, rel=1e-4) and method.count(batch) == 4
    with pytest.raises(UserError, match="leave the other one out"):
        method.count({})
    assert Context().notes == {}
