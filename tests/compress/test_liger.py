"""Liger: the recurrence is the naive one, a memory of constant size says the same, and softmax comes back."""
from __future__ import annotations

import torch

from tests.compress.linearized import (
    IDS,
    check_documents,
    check_memory,
    check_padding,
    check_refusals,
    converted,
    mixed,
    read_by_first_layer,
)
from tests.lm.architectures import make
from trainwright.compress.liger import Liger
from trainwright.lm import mixing

METHOD = Liger(window=5)


@torch.no_grad()
def test_it_is_the_naive_recurrence_beside_a_window() -> None:
    model = converted(METHOD)
    heads = read_by_first_layer(model, IDS)
    found = mixed(model, heads)
    for row, head in ((0, 0), (1, 3)):
        q, k, v = heads.plain_q[row, head], heads.plain_k[row, head], heads.v[row, head]
        state = torch.zeros(8, 8)
        for t in range(24):
            kept = torch.exp(torch.log(torch.sigmoid(k[t])) / 16)
            state = kept[:, None] * state + torch.outer(k[t].softmax(0), v[t])
            near = slice(max(0, t - 4), t + 1)
            scores = heads.q[row, head, t] @ heads.k[row, head, near].T / 8**0.5
            expected = 0.5 * scores.softmax(0) @ v[near] + 0.5 * q[t].softmax(0) @ state
            torch.testing.assert_close(found[row, head, t], expected, atol=1e-5, rtol=1e-4)


def test_an_adapter_on_the_keys_changes_gate_recurrence_and_window() -> None:
    model = converted(METHOD)
    before = read_by_first_layer(model, IDS)
    with torch.no_grad():
        model.get_decoder().layers[0].self_attn.k_proj.weight.mul_(1.5)
    after = read_by_first_layer(model, IDS)
    assert not torch.equal(before.plain_k, after.plain_k) and not torch.equal(before.k, after.k)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in make("llama").parameters())


def test_a_memory_of_constant_size_says_the_same() -> None:
    model = converted(METHOD)
    check_memory(model)
    check_padding(model)


def test_documents_of_a_row_do_not_see_each_other() -> None:
    check_documents(converted(METHOD))


def test_what_it_cannot_convert_is_refused() -> None:
    check_refusals(METHOD)


@torch.no_grad()
def test_without_it_the_model_is_the_softmax_model_again() -> None:
    model = converted(METHOD)
    moved = model(input_ids=IDS).logits
    METHOD.fold(model)
    plain = make("llama")(input_ids=IDS).logits
    assert torch.equal(model(input_ids=IDS).logits, plain) and not torch.allclose(moved, plain, atol=1e-2)


def test_steep_decays_stay_numbers() -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 40, 4, generator=draw) for _ in range(3))
    places = torch.arange(40)[None]
    decay = torch.full_like(k, mixing.STEEPEST)
    out, state = mixing.recurrence(q, k, v, decay, mixing.seen_of(None, places))
    torch.testing.assert_close(state[0, 0], sum(torch.exp(torch.tensor(-5.0 * (39 - t))) * torch.outer(
        k[0, 0, t], v[0, 0, t]) for t in range(40)))
    assert out.isfinite().all()
