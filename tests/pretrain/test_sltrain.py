"""SLTrain computes the dense sum, stores and trains nothing but factors and non-zeros, and exports a plain
model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from torch import nn

from tests.pretrain.small import FAMILIES, build, train
from trainwright import families
from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.settings import make
from trainwright.finetune.lora import Lora
from trainwright.optim.adamw import Adamw
from trainwright.pretrain.sltrain import Sltrain, SltrainLinear
from trainwright.stages._training import state_bytes

IDS = torch.arange(40).reshape(2, 20) * 7 % 64
SMALL = Sltrain(rank=4, alpha=2.0, density=0.05)


def operated(family: str = "llama", method: Sltrain = SMALL, seed: int = 1) -> tf.PreTrainedModel:
    model = build(family)
    method.operate(model, Context(seed=seed))
    return model


def layers(model: nn.Module) -> dict[str, SltrainLinear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, SltrainLinear)}


def one(transposed: bool = False, dtype: torch.dtype = torch.float64) -> SltrainLinear:
    """A layer of 6 inputs and 5 outputs with B and bias that are not zero."""
    before = tf.pytorch_utils.Conv1D(5, 6) if transposed else nn.Linear(6, 5)
    layer = SltrainLinear(
        before.to(dtype), Sltrain(rank=2, alpha=3.0, density=0.4), torch.Generator().manual_seed(0)
    )
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(generator=rng)
    return layer


def dense(layer: SltrainLinear) -> torch.Tensor:
    """W by its definition: entry by entry where S has one."""
    w = 1.5 * sum(torch.outer(layer.B[:, k], layer.A[k]) for k in range(2))
    sparse = {int(place): value for place, value in zip(layer.places, layer.values, strict=True)}
    rows = [torch.stack([w[i, j] + sparse.get(6 * i + j, 0.0) for j in range(6)]) for i in range(5)]
    return torch.stack(rows)


@pytest.mark.parametrize("transposed", [False, True], ids=["linear", "conv1d"])
def test_forward_is_the_dense_sum_and_so_are_all_gradients(transposed: bool) -> None:
    layer, x = one(transposed), torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    names = ["x", *dict(layer.named_parameters())]
    given = [x, *layer.parameters()]
    expected = F.linear(x, dense(layer), layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        layer.weight, dense(layer).T if transposed else dense(layer), rtol=1e-12, atol=1e-12
    )
    upstream = torch.randn(expected.shape, dtype=torch.float64)
    ours = torch.autograd.grad((layer(x) * upstream).sum(), given)
    theirs = torch.autograd.grad((expected * upstream).sum(), given)
    for name, a, b in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=name)
    assert torch.autograd.gradcheck(layer, x)


def test_the_value_of_an_entry_has_the_gradient_of_that_entry_alone() -> None:
    layer, x = one(), torch.randn(4, 6, dtype=torch.float64)
    layer(x).sum().backward()
    g = torch.ones(4, 5, dtype=torch.float64).T @ x
    assert torch.equal(layer.values.grad, torch.stack([g[int(p) // 6, int(p) % 6] for p in layer.places]))
    torch.testing.assert_close(layer.B.grad, 1.5 * g @ layer.A.T)
    torch.testing.assert_close(layer.A.grad, 1.5 * layer.B.T @ g)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_starts_as_its_sparse_part_of_the_papers_bounds(family: str) -> None:
    model, before = operated(family, Sltrain(rank=3, density=0.1)), build(family)
    assert {f"{n}.weight" for n in layers(model)} == SMALL.claims(before)
    for layer in layers(model).values():
        bound, size = 1 / math.sqrt(layer.in_features), layer.in_features * layer.out_features
        w = layer.weight.T if layer.transposed else layer.weight
        assert int((w != 0).sum()) == len(layer.values) == len(layer.places) == int(0.1 * size)
        assert torch.equal(w.flatten()[layer.places.long()], layer.values) and (layer.places.diff() > 0).all()
        assert (
            not layer.B.any()
            and layer.A.abs().max() <= bound
            and 0.9 * bound < layer.values.abs().max() <= bound
        )
        assert layer.places[0] < 0.1 * size and layer.places[-1] > 0.9 * size, (
            "places are drawn from all of W"
        )
    others = {n for n, _ in before.named_parameters()} - SMALL.claims(before)
    assert all(torch.equal(model.get_parameter(n), before.get_parameter(n)) for n in others)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_of_the_size_of_a_matrix_is_kept(family: str) -> None:
    """Neither as parameter or buffer, nor for backward (rows are too few to look like one)."""
    model = operated(family)
    for layer in layers(model).values():
        size, kept = layer.in_features * layer.out_features, []
        assert all(t.numel() < size / 2 for t in [*layer.parameters(), *layer.buffers()])
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t
        ):
            layer(torch.randn(3, layer.in_features, requires_grad=True)).sum().backward()
        assert kept and max(kept) < size / 2


def stage(width: int, *methods: object) -> Train:
    run = train(build(width=width, layers=1), *methods, Adamw(lr=1e-2))
    run.run(until=2)
    return run


def test_bytes_are_those_of_the_formula() -> None:
    """Weights and AdamW's two moments: 12 bytes a number, and 4 a place; dense, 12 for each of in out."""
    rank, density, width = 16, 0.03, 192
    runs = stage(width), stage(width, Sltrain(rank=rank, density=density))
    shapes = [(m.in_features, m.out_features) for m in layers(runs[1].model).values()]
    assert len(shapes) == 7 and sorted(set(shapes)) == [(192, 96), (192, 192), (192, 288), (288, 192)]
    formula = sum(12 * rank * (i + o) + (12 + 4) * density * i * o for i, o in shapes) - sum(
        12 * i * o for i, o in shapes
    )
    sizes = [
        sum(t.numel() * t.element_size() for t in r.model.state_dict().values()) + state_bytes(r)
        for r in runs
    ]
    whole = sizes[0] + formula
    assert abs(sizes[1] - whole) < 0.01 * whole and sizes[1] < 0.35 * sizes[0]
    numbers = sum(rank * (i + o) + int(density * i * o) for i, o in shapes)
    assert sum(p.numel() for m in layers(runs[1].model).values() for p in m.parameters()) == numbers


def test_factors_and_values_train_and_the_places_stay() -> None:
    run, fresh = stage(32, SMALL), train(build(layers=1), SMALL, Adamw())
    for name, layer in layers(run.model).items():
        before = layers(fresh.model)[name]
        assert torch.equal(layer.places, before.places)
        assert all(
            (a != b).float().mean() > 0.9
            for a, b in zip(layer.parameters(), before.parameters(), strict=True)
        )
    name = "model.layers.0.mlp.up_proj"
    assert not torch.equal(layers(operated(seed=2))[name].places, layers(operated())[name].places)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_and_its_export_is_a_plain_model_of_the_same_function(family: str, tmp_path: Path) -> None:
    run = train(build(family, layers=1), SMALL, Adamw(lr=3e-2))
    run.run(until=1)
    first = run.row["loss"]
    run.run()
    assert run.row["loss"] < 0.9 * first
    with torch.no_grad():
        logits = run.model.eval()(IDS).logits
        SMALL.fold(run.model)
    families.save(run.model, tmp_path, None)
    plain = families.load(tmp_path, "here").eval()
    assert [type(m) for m in run.model.modules()] == [type(m) for m in plain.modules()]
    with torch.no_grad():
        torch.testing.assert_close(plain(IDS).logits, logits, rtol=1e-4, atol=1e-5)


def test_two_with_other_settings_live_together() -> None:
    first, second = Sltrain(rank=2, layers="attention"), Sltrain(rank=3, layers="mlp")
    run = train(build(), first, second, Adamw())
    first.fold(run.model)
    assert {m.settings for m in layers(run.model).values()} == {second} and not first.claims(
        build()
    ) & second.claims(build())
    with pytest.raises(UserError, match="both claim"):
        train(build(), first, Lora(), Adamw())


@pytest.mark.parametrize("half", [False, True], ids=["autocast", "bfloat16"])
def test_bf16(half: bool) -> None:
    exact, model = (
        operated().eval()(IDS).logits,
        operated().to(torch.bfloat16 if half else torch.float32).eval(),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not half):
        out = model(IDS, labels=IDS)
    torch.testing.assert_close(out.logits.float(), exact, rtol=0.05, atol=0.05)
    out.loss.backward()
    assert all(p.grad.dtype == p.dtype and p.grad.isfinite().all() for p in model.parameters())
    assert all(m.places.dtype == torch.int32 for m in layers(model).values())


def gradients(model: tf.PreTrainedModel, compiled: bool = False) -> dict[str, torch.Tensor]:
    call = torch.compile(model, backend="aot_eager") if compiled else model
    call(IDS, labels=IDS, use_cache=False).loss.backward()
    return {n: p.grad for n, p in model.named_parameters()}


def test_checkpointed_blocks_have_the_same_gradients() -> None:
    plain, checkpointed = operated().train(), operated().train()
    sharding.checkpoint_blocks(checkpointed)
    other = gradients(checkpointed)
    assert all(torch.allclose(g, other[n], atol=1e-6) for n, g in gradients(plain).items())


@pytest.mark.slow
def test_compiled_it_has_the_same_gradients() -> None:
    other = gradients(operated(), compiled=True)
    assert all(torch.allclose(g, other[n], atol=1e-6) for n, g in gradients(operated()).items())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 0}, "rank must be"),
        ({"density": 0.0}, "density must be"),
        ({"density": 1.0}, "density must be"),
    ],
)
def test_settings_out_of_range(settings: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(Sltrain, settings, "here")


def test_what_would_save_nothing_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"rank = 128 and density = 0.03 .* in place of .*; take a lower rank"
    ):
        operated(method=Sltrain())
    with pytest.raises(UserError, match=r"matches no nn\.Linear"):
        operated(method=Sltrain(layers="*.query"))
