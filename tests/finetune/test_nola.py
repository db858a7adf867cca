"""NOLA is LoRA with mixed matrices; its delta is coefficients alone; no pass holds the random matrices."""
from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.lm.architectures import IDS, make, moved
from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make as settings
from trainwright.families import deltas
from trainwright.finetune.lora import Lora
from trainwright.finetune.nola import Nola, combine, project, uniform

CPU = torch.device("cpu")
KINDS = pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])


def operated(kind: str, method: Nola, seed: int = 1):
    model = make(kind)
    method.operate(model, Context(seed=seed))
    return model


# ---- the random matrices -----------------------------------------------------------------------------------


def by_hand(seed: int, matrix: int, place: int) -> float:
    """One entry in Python's whole numbers."""
    def mixed(h: int) -> int:
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            h = (h ^ h >> shift) * factor % 2**32
        return h ^ h >> 16

    z = (seed + (matrix + 1) * 0x9E3779B97F4A7C15) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ z >> shift) * factor % 2**64
    z ^= z >> 31
    h = mixed(mixed((place // 2 * 0x9E3779B9 + z) % 2**32) ^ z >> 32)
    half = h >> 16 * (place % 2) & 0xFFFF
    return ((half - 2**16 if half >= 2**15 else half) + 0.5) / 2**15


def test_an_entry_is_a_hash_of_seed_matrix_and_place() -> None:
    for seed in (0, 7, 2**63 - 1):
        entries = uniform(seed, 3, 4, 50, CPU)
        assert all(float(entries[i, j]) == by_hand(seed, 3 + i, j) for i in range(4) for j in range(0, 50, 7))


def test_entries_are_uniform_and_independent() -> None:
    x = uniform(11, 0, 64, 4096, CPU).double()
    assert x.min() > -1 and x.max() < 1
    assert abs(x.mean()) < 4 / math.sqrt(3 * x.numel()) and abs(x.var() - 1 / 3) < 0.003
    bins = torch.histc(x, bins=32, min=-1, max=1) / x.numel() * 32
    assert (bins - 1).abs().max() < 0.05
    rows = torch.corrcoef(torch.cat([x, uniform(12, 0, 64, 4096, CPU).double()])) - torch.eye(128)
    # of 8128 pairs none is beyond 6 deviations
    assert rows.abs().max() < 6 / 64
    after = (x[:, :-1] * x[:, 1:]).mean() * 3
    assert abs(after) < 4 / math.sqrt(x.numel())


def test_parts_and_order_make_no_difference() -> None:
    whole = uniform(5, 0, 40, 300, CPU)
    assert torch.equal(torch.cat([uniform(5, 0, 13, 300, CPU), uniform(5, 13, 27, 300, CPU)]), whole)
    assert torch.equal(uniform(5, 39, 1, 99, CPU)[0], whole[39, :99])


def test_mixture_and_its_gradient_equal_those_of_stored_matrices() -> None:
    c = torch.randn(300, requires_grad=True)
    stored = uniform(9, 0, 300, 6 * 70, CPU).view(300, 6, 70) / math.sqrt(300)
    weight = torch.randn(6, 70)
    mixed, plain = combine(c, 9, 6, 70), torch.einsum("k,krc->rc", c, stored)
    assert torch.allclose(mixed, plain, atol=1e-6)
    ours, = torch.autograd.grad((mixed * weight).sum(), c)
    theirs, = torch.autograd.grad((plain * weight).sum(), c)
    assert torch.allclose(ours, theirs, atol=1e-5) and torch.equal(ours, project(weight, 9, 300))


# ---- the method --------------------------------------------------------------------------------------------


def test_formula_by_hand() -> None:
    method = Nola(bases=5, rank=3, alpha=6.0, layers="*.0.mlp.up_proj")
    plain, model = make("llama").model.layers[0].mlp.up_proj, operated("llama", method)
    layer = model.model.layers[0].mlp.up_proj
    moved(model, size=1.0)
    bases_a = uniform(layer.seeds[0], 0, 6, 3 * 32, CPU).view(6, 3, 32)
    bases_b = uniform(layer.seeds[1], 0, 5, 48 * 3, CPU).view(5, 48, 3)
    A = bases_a[5] / math.sqrt(32) + sum(
        a * m for a, m in zip(layer.nola_a, bases_a, strict=False)
    ) / math.sqrt(5)
    B = sum(b * m for b, m in zip(layer.nola_b, bases_b, strict=True)) / math.sqrt(5)
    x = torch.randn(2, 4, 32)
    assert torch.allclose(layer(x), plain(x) + 2.0 * x @ A.T @ B.T, atol=1e-5)


def test_first_b_moves_then_a() -> None:
    """A_0 keeps the start alive: where it is missing, both gradients are zero for ever."""
    model = operated("llama", Nola(bases=8))
    layers = Nola(bases=8).mine(model).values()
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(m.nola_b.grad.abs().sum() > 0 and m.nola_a.grad.abs().sum() == 0 for m in layers)
    for m in layers:
        m.nola_b.data.sub_(m.nola_b.grad)
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(m.nola_a.grad.abs().sum() > 0 for m in layers)


def saved_bytes(model: torch.nn.Module) -> int:
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in weights:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    return sum(kept.values())


def test_memory_does_not_depend_on_the_number_of_matrices() -> None:
    few, many = saved_bytes(operated("llama", Nola(bases=4))), saved_bytes(operated("llama", Nola(bases=400)))
    assert few == many


@KINDS
def test_fold_gives_the_plain_model_of_the_same_function(kind: str) -> None:
    method, before = Nola(bases=16, rank=4), make(kind)
    model = operated(kind, method)
    assert torch.allclose(model(input_ids=IDS).logits, before(input_ids=IDS).logits, atol=1e-6)
    logits = moved(model, size=1.0)
    assert not torch.allclose(logits, before(input_ids=IDS).logits, atol=1e-2)
    method.fold(model)
    assert torch.allclose(model(input_ids=IDS).logits, logits, atol=1e-4)
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]


@KINDS
def test_the_delta_is_coefficients_alone_and_rebuilds_the_model_to_the_bit(kind: str, tmp_path: Path) -> None:
    method = Nola(bases=16, rank=4, layers="attention")
    model = operated(kind, method, seed=23)
    moved(model)
    layers = len(method.mine(model))
    deltas.write(model, [method], 23, tmp_path, None)
    tensors = load_file(tmp_path / "adapter" / "nola.safetensors")
    assert sum(t.numel() for t in tensors.values()) == layers * 2 * 16 and {
        t.dim() for t in tensors.values()
    } == {1}
    again = make(kind)
    assert deltas.put(again, tmp_path / "adapter") == method
    method.fold(again)
    saved = families.load(tmp_path, "test").state_dict()
    assert all(torch.equal(saved[n], t) for n, t in again.state_dict().items())


def test_what_is_stored_depends_neither_on_rank_nor_on_width(tmp_path: Path) -> None:
    sizes = set()
    for i, (rank, width) in enumerate([(1, 32), (16, 32), (16, 128)]):
        model, method = make("llama", hidden_size=width), Nola(bases=64, rank=rank)
        method.operate(model, Context())
        method.save_delta(model, tmp_path / str(i))
        sizes.add((tmp_path / str(i) / "nola.safetensors").stat().st_size)
    assert len(sizes) == 1 and 0 < sizes.pop() - 14 * 2 * 64 * 4 < 14 * 2 * 100          # names and offsets


def test_no_global_randomness_moves_and_layers_differ() -> None:
    before = torch.get_rng_state()
    model = operated("llama", Nola(bases=8))
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert torch.equal(torch.get_rng_state(), before)
    seeds = [s for m in Nola(bases=8).mine(model).values() for s in m.seeds]
    other = [
        s for m in Nola(bases=8).mine(operated("llama", Nola(bases=8), seed=2)).values() for s in m.seeds
    ]
    assert len(set(seeds)) == len(seeds) == 28 and not set(seeds) & set(other)


@pytest.mark.slow
def test_compiles_whole() -> None:
    model = operated("llama", Nola(bases=8))
    exact = moved(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(input_ids=IDS, use_cache=False).logits, exact, atol=1e-5)


def test_checkpointing_and_bf16_agree() -> None:
    model = operated("llama", Nola(bases=8))
    exact = moved(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(model(input_ids=IDS).logits.float(), exact, atol=0.1)
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model.train()(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    assert len(grads[0]) == 28 and all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


def test_it_shares_a_model_with_lora_on_other_layers(tmp_path: Path) -> None:
    nola, lora, model = Nola(layers="attention", bases=4), Lora(layers="mlp"), make("llama")
    for method in (nola, lora):
        method.operate(model, Context())
    trained = {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"nola_a", "nola_b", "lora_A", "lora_B"}
    with pytest.raises(UserError, match="another adapter"):
        Nola().operate(model, Context())
    logits = moved(model)
    deltas.write(model, [nola, lora], 0, tmp_path, None)
    assert torch.allclose(families.load(tmp_path, "test").eval()(input_ids=IDS).logits, logits, atol=1e-5)
    assert {f.name for f in tmp_path.iterdir() if f.is_dir()} == {"adapter-1", "adapter-2"}
    with pytest.raises(UserError, match="has no load_delta"):
        deltas.put(make("llama"), tmp_path / "adapter-2")


def test_a_delta_of_another_model_is_refused(tmp_path: Path) -> None:
    method = Nola(bases=4)
    model = operated("llama", method)
    deltas.write(model, [method], 0, tmp_path, None)
    with pytest.raises(UserError, match=r"made of another model: only one of the two has model\.layers\.2"):
        deltas.put(make("llama", num_hidden_layers=3), tmp_path / "adapter")
    with pytest.raises(UserError, match="holds no delta"):
        deltas.put(make("llama"), tmp_path)


@pytest.mark.parametrize(
    ("given", "words"), [({"bases": 0}, "bases must be 1 or more"), ({"rank": 0}, "rank must be")]
)
def test_bad_settings(given: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        settings(Nola, given, "adapt")
