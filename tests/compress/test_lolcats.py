"""LoLCATs: the hybrid by hand, attention transfer that comes nearer to softmax, and maps that stay."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

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
from trainwright.compress.lolcats import Lolcats
from trainwright.core.context import Context
from trainwright.lm import mixing

METHOD = Lolcats(features=6, window=5)
BATCH = {"input_ids": IDS, "targets": IDS.roll(-1, 1), "position_ids": torch.arange(24).expand(2, -1)}


def phi(x: Tensor, matrix: Tensor) -> Tensor:
    return torch.cat([(x @ matrix).softmax(0), (-x @ matrix).softmax(0)])


@torch.no_grad()
def test_it_is_the_hybrid_sum_by_hand() -> None:
    """The window is divided by its own largest score alone, and the sum of both parts divides."""
    model = converted(METHOD)
    mixer = model.get_decoder().layers[0].self_attn.linear
    mixer.balance.add_(torch.arange(4.0)[:, None, None])
    heads = read_by_first_layer(model, IDS)
    found = mixed(model, heads)
    for row, head, n in ((0, 0, 3), (0, 3, 23), (1, 2, 9)):
        q, k, v = heads.q[row, head, n], heads.k[row, head], heads.v[row, head]
        near = range(max(0, n - 4), n + 1)
        scores = {j: float(q @ k[j]) / 8**0.5 for j in near}
        gamma, most = float(mixer.balance[head].sigmoid()), max(scores.values())
        weights = {j: gamma * torch.tensor(s - most).exp() for j, s in scores.items()}
        weights |= {j: phi(q, mixer.map_q[head]) @ phi(k[j], mixer.map_k[head]) for j in range(n - 4)}
        expected = sum(w * v[j] for j, w in weights.items()) / sum(weights.values())
        torch.testing.assert_close(found[row, head, n], expected, atol=1e-5, rtol=1e-4)


def test_transfer_trains_the_maps_alone_towards_what_softmax_says() -> None:
    model = converted(METHOD).train()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {n.rpartition(".")[2] for n in trained} == {"map_q", "map_k", "balance"}
    heads = read_by_first_layer(model, IDS)
    seen = mixing.seen_of(None, BATCH["position_ids"])
    layers = [layer.self_attn for layer in model.get_decoder().layers]
    optimizer, values = torch.optim.Adam(trained.values(), lr=3e-2), []
    for _ in range(25):
        loss = METHOD.loss(model, BATCH, {}, Context())
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        values.append(float(loss.detach().mean()))
    assert loss.shape == (2, 24) and values[-1] < 0.7 * values[0]
    with torch.no_grad():                                  # by hand, of the first layer, and softmax goes on
        error = (layers[0].linear.mixed(heads, seen) - mixing.softmax(heads, seen)).square().mean((1, 3))
        torch.testing.assert_close(model(**{n: BATCH[n] for n in ("input_ids",)}).logits,
                                   make("llama")(input_ids=IDS).logits, atol=1e-4, rtol=1e-4)
    layers[1].linear.balance.data.fill_(torch.nan)           # a layer learns from itself alone
    whole = METHOD.loss(model, BATCH, {}, Context())
    layers[0].linear.heard = []
    model(input_ids=IDS)
    torch.testing.assert_close(layers[0].linear.heard[0], error, atol=1e-5, rtol=1e-3)
    assert whole.isnan().all()


def test_learned_maps_come_back_frozen_and_act(tmp_path: Path) -> None:
    model = converted(METHOD)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3)
    METHOD.save_delta(model, tmp_path)
    again = converted(METHOD)
    METHOD.load_delta(again, tmp_path)
    torch.testing.assert_close(again(input_ids=IDS).logits, model(input_ids=IDS).logits)
    free = {n for n, p in again.named_parameters() if p.requires_grad}
    assert free == {n for n, _ in make("llama").named_parameters()}
    torch.testing.assert_close(again.train()(input_ids=IDS).logits, model.eval()(input_ids=IDS).logits)


def test_a_memory_of_constant_size_says_the_same() -> None:
    model = converted(METHOD)
    check_memory(model)
    check_padding(model)


def test_documents_of_a_row_do_not_see_each_other() -> None:
    check_documents(converted(METHOD))


@pytest.mark.parametrize("method", [METHOD])
def test_what_it_cannot_convert_is_refused(method: Lolcats) -> None:
    check_refusals(method)
