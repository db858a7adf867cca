"""Batch-scheduled sampling: what is replaced, what is not, and corrections by hand."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.align.pairs import context
from trainwright.align.batch_scheduled_sampling import BatchScheduledSampling, Span, spans
from trainwright.check import tiny
from trainwright.core import checkpoint
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch
from trainwright.data.order.examples import Examples
from trainwright.lm.generation import Prompt, end_tokens, sampled

PLAIN = Examples(length=32, domains=("chat",))


def steps(method: BatchScheduledSampling | None, many: int) -> tuple[list[Batch], Context]:
    """The first batches, of examples alone where there is no method."""
    ctx = context()
    ctx.steps = many
    assert ctx.policy is not None
    before, out = PLAIN.init(ctx.policy, ctx), []
    state = method.init(ctx.policy, ctx) if method else {}
    for ctx.step in range(many):
        def pull() -> Batch:
            return PLAIN.next(lambda: {}, before, ctx)
        out.append(method.next(pull, state, ctx) if method else pull())
    return out, ctx


def test_spans_by_hand() -> None:
    targets = torch.tensor([[-100, 5, 6, -100, 7], [-100] * 5, [3, -100, -100, 4, -100]])
    assert spans(targets) == [Span(0, 1, 2), Span(0, 4, 4), Span(2, 0, 0), Span(2, 3, 3)]


@pytest.mark.slow
def test_the_context_is_the_models_own_and_the_labels_are_right() -> None:
    """With a probability of 1 each answer's context is what the model said, as far as it goes."""
    plain, _ = steps(None, 2)
    found, ctx = steps(BatchScheduledSampling(own=1.0, start=1.0, every=2), 2)
    ends, changed = end_tokens(ctx.policy, ctx.tokenizer), 0
    for number, (one, two) in enumerate(zip(plain, found, strict=True)):
        assert torch.equal(one["targets"], two["targets"])
        for row, first, last in spans(one["targets"]):
            seed = ctx.rng(f"batch_scheduled_sampling/{8 * number + row}/{first}", at=0).initial_seed()
            prompt = Prompt(one["input_ids"][row, :first + 1].tolist(), last - first + 1, seed, 1.0)
            own = sampled(ctx.policy, ctx.tokenizer, [prompt], ctx)[0].ids
            own = own[:-1] if own[-1] in ends else own
            right = one["input_ids"][row].clone()
            right[first + 1:first + 1 + len(own)] = torch.tensor(own)
            assert torch.equal(two["input_ids"][row], right)
            changed += int((right != one["input_ids"][row]).sum())
    assert changed > 16


@pytest.mark.slow
def test_a_probability_of_none_changes_nothing_and_it_rises_over_the_stage() -> None:
    plain, _ = steps(None, 4)
    none, _ = steps(BatchScheduledSampling(own=0.0, every=2), 4)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(plain, none, strict=True))
    some, ctx = steps(BatchScheduledSampling(own=0.75, every=2), 4)
    away = [int((a["input_ids"] != b["input_ids"]).sum()) for a, b in zip(plain, some, strict=True)]
    assert away[:2] == [0, 0] and away[2] and away[3]
    assert [float(v) for v, _ in ctx.notes["own/share"]] == [0.0, 0.5]


def test_a_correction_stands_behind_the_models_own_answer() -> None:
    plain, _ = steps(None, 1)
    found, ctx = steps(BatchScheduledSampling(own=0.0, corrected=1.0, marker="/", every=1), 1)
    seen, between = 0, ctx.tokenizer("/", add_special_tokens=False)["input_ids"]
    for row, first, last in spans(plain[0]["targets"]):
        ids, targets = found[0]["input_ids"][row], found[0]["targets"][row]
        if torch.equal(ids, plain[0]["input_ids"][row]):     # it does not fit into the row
            continue
        seen += 1
        right = plain[0]["targets"][row, first:last + 1]
        (_, begin, end), = spans(targets[None])
        assert torch.equal(targets[begin:end + 1], right) and torch.equal(ids[begin + 1:end + 2], right)
        assert torch.equal(ids[:first + 1], plain[0]["input_ids"][row, :first + 1])
        assert ids[begin + 1 - len(between):begin + 1].tolist() == between
        assert int(found[0]["attention_mask"][row].sum()) == end + 2
    assert seen > 1


@pytest.mark.slow
def test_it_goes_on_in_the_middle_of_a_phase(tmp_path: Path) -> None:
    """The rows of steps that are left are those that were made at its beginning, by the model of then."""
    method = BatchScheduledSampling(own=0.5, start=0.5, every=3)
    whole = tiny.stage(method, tmp_path / "a")
    whole.run(until=2)
    checkpoint.save(whole, tmp_path / "saved", {})
    whole.run(until=4)
    again = tiny.stage(method, tmp_path / "b", saved=checkpoint.newest(tmp_path / "saved")[0])
    again.run(until=4)
    assert all(torch.equal(p, again.params[n]) for n, p in whole.params.items())


def test_what_it_refuses() -> None:
    ctx = context()
    method: Any = BatchScheduledSampling()
    with pytest.raises(UserError, match="rows of one document each"):
        method.next(lambda: {"input_ids": torch.zeros(8, 3), "packed": True,
                             "targets": torch.full((8, 3), UNTRAINED)}, method.init(ctx.policy, ctx), ctx)
    with pytest.raises(UserError, match="answers of a rollout are the model's own already"):
        method.next(lambda: {"input_ids": torch.zeros(8, 3), "logp": torch.zeros(8, 3),
                             "targets": torch.full((8, 3), UNTRAINED)}, method.init(ctx.policy, ctx), ctx)
