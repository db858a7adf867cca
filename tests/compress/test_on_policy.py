"""Sampled answers in place of the corpus': whose they are, when they are the same, and what is left alone."""
from __future__ import annotations

from typing import Any

import pytest
import torch

from trainwright.check import tiny
from trainwright.compress.on_policy import OnPolicy
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED
from trainwright.data.order.examples import Examples
from trainwright.lm.generation import Prompt, sampled

LENGTH = 24
ROWS = 6


def context(step: int = 0) -> Context:
    ctx = tiny.context(tiny.place())
    ctx.batch_rows, ctx.policy, ctx.step = ROWS, tiny.model(), step
    ctx.frozen["teacher"] = tiny.model(seed=5).eval()
    return ctx


def rows(ctx: Context, **settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What came in, and what was made of it."""
    data = Examples(fields=("text",), length=LENGTH)
    given = data.next(lambda: {}, data.init(tiny.model(), ctx), ctx)
    method = OnPolicy(prompt=4, new_tokens=5, **settings)
    return given, method.next(lambda: given, method.init(tiny.model(), ctx), ctx)


@pytest.mark.parametrize("writer", ["student", "teacher"])
def test_answers_are_those_that_the_writer_samples_behind_the_prompt(writer: str) -> None:
    ctx = context()
    given, made = rows(ctx, writer=writer)
    model = ctx.policy if writer == "student" else ctx.frozen["teacher"]
    for row in range(ROWS):
        learned = (made["targets"][row] != UNTRAINED).nonzero()[:, 0]
        at, end = int(learned[0]) + 1, int(learned[-1]) + 2
        assert at >= 4 and end - at <= 5 and end == made["attention_mask"][row].sum()
        assert torch.equal(made["input_ids"][row, :at], given["input_ids"][row, :at])
        prompt = Prompt(given["input_ids"][row, :at].tolist(), 5,
                        ctx.rng(f"on_policy/{row}").initial_seed(), 1.0)
        said = sampled(model, ctx.tokenizer, [prompt], ctx)[0].ids
        assert made["input_ids"][row, at:end].tolist() == said == made["targets"][row, learned].tolist()


def test_a_fixed_answer_comes_again_and_a_fresh_one_does_not() -> None:
    for fixed in (True, False):
        first, later = (rows(context(step), writer="teacher", fixed=fixed)[1] for step in (0, 7))
        assert torch.equal(first["input_ids"], later["input_ids"]) == fixed


def test_a_share_of_the_rows_is_left_as_it_is() -> None:
    given, made = rows(context(), share=0.5)
    kept = [torch.equal(given["targets"][row], made["targets"][row]) for row in range(ROWS)]
    assert 0 < sum(kept) < ROWS


def test_rows_of_several_documents_and_long_prompts_are_refused() -> None:
    with pytest.raises(UserError, match="rows of single documents"):
        OnPolicy().next(lambda: {"input_ids": torch.zeros(1, 4), "packed": True}, {}, context())
    with pytest.raises(UserError, match="no prompt leaves room for new_tokens = 23"):
        ctx = context()
        data = Examples(fields=("text",), length=LENGTH)
        given = data.next(lambda: {}, data.init(tiny.model(), ctx), ctx)
        OnPolicy(prompt=4, new_tokens=23).next(lambda: given, {}, ctx)
    with pytest.raises(ValueError, match="a student changes"):
        OnPolicy(fixed=True)
