"""MoS puts LoRA matrices together from shared shards; the pools and a seed are the whole adapter."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.lm.architectures import IDS, make, moved
from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make as settings
from trainwright.families import deltas
from trainwright.finetune.lora import Lora
from trainwright.finetune.mixture_of_shards import MixtureOfShards, MosLinear

KINDS = pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
SMALL = MixtureOfShards(rank=3, budget=2, private=1, shards=4, alpha=6.0)


def operated(kind: str, method: MixtureOfShards, seed: int = 1, **given) -> nn.Module:
    model = make(kind, **given)
    method.operate(model, Context(seed=seed))
    return model


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def test_matrices_by_hand() -> None:
    """Row j of A is shards j l to j l + l - 1 one behind another, column j of B likewise."""
    model, plain = operated("llama", SMALL), make("llama").model.layers[1].mlp.up_proj
    moved(model)
    layer, pool = model.model.layers[1].mlp.up_proj, model.shards.model_layers_mlp_up_proj_48x32
    assert pool.A.shape == (2 * 2 * 4, 32 // 4) and pool.B.shape == (2 * 2 * 4, 48 // 4)
    A, B = torch.empty(3, 32), torch.empty(48, 3)
    for j in range(3):
        for part in range(4):
            A[j, part * 8:(part + 1) * 8] = pool.A[layer.index_A[j * 4 + part]]
            B[part * 12:(part + 1) * 12, j] = pool.B[layer.index_B[j * 4 + part]]
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(layer(x), plain(x) + 2.0 * x @ A.T @ B.T, atol=1e-5)


@KINDS
def test_parameter_count_is_that_of_lora_of_the_budget(kind: str) -> None:
    model, lora = operated(kind, MixtureOfShards(rank=4, budget=3, private=1)), make(kind)
    Lora(rank=3).operate(lora, Context())
    counted = sum(p.numel() for p in trained(model).values())
    assert counted == sum(p.numel() for p in trained(lora).values())
    # 2 layers: q, o; k, v of half the heads; gate, up, down
    if kind == "llama":
        assert counted == 3 * 2 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))


def test_which_shards_a_layer_has() -> None:
    """Shared ones are drawn without repetition, for A and B apart; private ones are nobody else's."""
    model = operated("llama", MixtureOfShards(rank=4, budget=3, private=1, shards=4), num_hidden_layers=4)
    shared, seen = (3 - 1) * 4 * 4, []
    for place, block in enumerate(model.model.layers):
        layer = block.self_attn.q_proj
        for index in (layer.index_A, layer.index_B):
            assert len(index) == len(set(index.tolist())) == 4 * 4
            assert int(index[:12].max()) < shared
            assert index[12:].tolist() == list(range(shared + place * 4, shared + (place + 1) * 4))
        seen += [tuple(layer.index_A.tolist()), tuple(layer.index_B.tolist())]
    assert len(set(seen)) == 8


def test_gradients_of_layers_that_share_a_shard_add_up() -> None:
    model = operated("llama", SMALL)
    moved(model, size=0.05)
    layers = [
        m
        for m in model.modules()
        if isinstance(m, MosLinear) and m.pool[0] is model.shards.model_layers_mlp_up_proj_48x32
    ]
    pool, made = layers[0].pool[0], []
    plain = MosLinear.matrices

    def kept(self: MosLinear):
        A, B = plain(self)
        if self in layers:
            A.retain_grad()
            made.append(A)
        return A, B
    MosLinear.matrices = kept
    try:
        model(input_ids=IDS, labels=IDS).loss.backward()
    finally:
        MosLinear.matrices = plain
    expected = torch.zeros_like(pool.A)
    for layer, A in zip(layers, made, strict=True):
        for place, grad in zip(layer.index_A.tolist(), A.grad.view(-1, 8), strict=True):
            expected[place] += grad
    assert set(layers[0].index_A.tolist()) & set(layers[1].index_A.tolist())
    assert torch.allclose(pool.A.grad, expected, atol=1e-7) and expected.abs().sum() > 0


def test_with_private_shards_alone_it_is_lora() -> None:
    ours, theirs = operated("llama", MixtureOfShards(rank=2, budget=2, private=2, alpha=8.0)), make("llama")
    lora = Lora(rank=2, alpha=8.0)
    lora.operate(theirs, Context())
    logits = moved(ours)
    with torch.no_grad():
        for name, layer in lora.mine(theirs).items():
            A, B = ours.get_submodule(name).matrices()
            layer.lora_A.copy_(A)
            layer.lora_B.copy_(B)
    assert torch.allclose(theirs(input_ids=IDS).logits, logits, atol=1e-5)


def test_the_start_is_that_of_lora_by_the_whole_width() -> None:
    model = operated("llama", MixtureOfShards(rank=4, budget=4, private=1, shards=8), num_hidden_layers=4)
    for name, parameter in trained(model).items():
        if name.endswith(".B"):
            assert not parameter.any()
        else:
            bound = int(name.split("x")[-1].split(".")[0]) ** -0.5
            assert 0.9 * bound < float(parameter.detach().abs().max()) <= bound


@KINDS
def test_merges_exactly(kind: str) -> None:
    before, model = make(kind), operated(kind, SMALL)
    assert torch.allclose(model(input_ids=IDS).logits, before(input_ids=IDS).logits, atol=1e-6)
    logits = moved(model)
    assert (logits - before(input_ids=IDS).logits).abs().max() > 0.01
    SMALL.fold(model)
    assert torch.allclose(model(input_ids=IDS).logits, logits, atol=1e-5)
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
    assert model.state_dict().keys() == before.state_dict().keys()


@KINDS
def test_pools_and_seed_rebuild_the_model_to_the_bit(kind: str, tmp_path: Path) -> None:
    model = operated(kind, SMALL, seed=23)
    moved(model)
    count = sum(p.numel() for p in trained(model).values())
    deltas.write(model, [SMALL], 23, tmp_path, None)
    stored = load_file(tmp_path / "adapter" / "mixture_of_shards.safetensors")
    assert sum(t.numel() for t in stored.values()) == count
    again, other = make(kind), make(kind)
    assert deltas.put(again, tmp_path / "adapter") == SMALL
    SMALL.operate(other, Context(seed=24))
    SMALL.load_delta(other, tmp_path / "adapter")
    for one in (again, other):
        SMALL.fold(one)
    saved = families.load(tmp_path, "test").state_dict()
    assert all(torch.equal(saved[n], t) for n, t in again.state_dict().items())
    assert not all(torch.equal(saved[n], t) for n, t in other.state_dict().items())


def test_it_shares_a_model_with_its_like_and_with_lora() -> None:
    first, second = (
        MixtureOfShards(rank=2, layers="attention"),
        MixtureOfShards(rank=3, layers="*.mlp.up_proj"),
    )
    lora, model = Lora(layers="*.mlp.down_proj"), make("llama")
    for method in (first, second, lora):
        method.operate(model, Context())
    assert {n.split(".")[0] for n in trained(model)} == {"shards", "shards_2", "model"}
    with pytest.raises(UserError, match="another adapter"):
        MixtureOfShards().operate(model, Context())
    logits = moved(model)
    for method in (second, first, lora):
        method.fold(model)
    assert torch.allclose(model(input_ids=IDS).logits, logits, atol=1e-5)
    assert model.state_dict().keys() == make("llama").state_dict().keys()


def test_checkpointing_and_bf16_agree() -> None:
    model = operated("llama", SMALL)
    exact = moved(model, size=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(model(input_ids=IDS).logits.float(), exact, atol=0.1)
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model.train()(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        grads.append([p.grad for p in trained(model).values()])
    assert len(grads[0]) == 14 and all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(("given", "words"), [
    ({"shards": 5}, r"does not divide the 32 inputs and 32 outputs of model\.layers\.\*\.self_attn\.q_proj"),
    ({"rank": 4, "budget": 2}, r"a layer shares 3 rows, and the pool of .*q_proj has 2: raise budget")])
def test_what_does_not_fit_is_refused(given: dict, words: str) -> None:
    model = make("llama")
    with pytest.raises(UserError, match=words):
        MixtureOfShards(**given).operate(model, Context())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("given", "words"), [
    ({"rank": 0}, "rank must be 1 or more"), ({"private": 3}, "no more than budget and rank"),
    ({"dropout": 1.0}, "dropout must be"), ({"shards": 0}, "shards must be 1 or more")])
def test_bad_settings(given: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        settings(MixtureOfShards, given, "adapt")
