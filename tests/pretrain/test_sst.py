"""SST: gradients without the singular value, draws by their probabilities, vectors of length 1 that are
orthogonal again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from tests.pretrain.small import FAMILIES, build, train
from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.method import Optimizer
from trainwright.core.settings import make
from trainwright.lm.layers import as_linear_weight
from trainwright.optim.adamw import Adamw
from trainwright.pretrain.sst import SpectralLinear, Sst, drawn, probabilities

IDS = torch.arange(40).reshape(2, 20) * 7 % 64
SMALL = Sst(rank=4, interval=4, warmup_steps=0)


class Sgd(Optimizer):
    """The gradient is the step."""


def layers(model: nn.Module) -> dict[str, SpectralLinear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, SpectralLinear)}


def weights(model: nn.Module) -> dict[str, Tensor]:
    """W [out, in] of each layer."""
    with torch.no_grad():
        return {n: (m.weight.T if m.transposed else m.weight).clone() for n, m in layers(model).items()}


def lengths_off(layer: SpectralLinear) -> float:
    U, _, V = layer.factors()
    return max(float((t.norm(dim=0) - 1).abs().max()) for t in (U, V))


def orthogonality_off(layer: SpectralLinear) -> float:
    U, _, V = layer.factors()
    return max(float((t.T @ t - torch.eye(t.shape[1])).abs().max()) for t in (U, V))


def one(rank: int, transposed: bool = False) -> SpectralLinear:
    """A layer of 6 inputs and 5 outputs with a bias."""
    before = tf.pytorch_utils.Conv1D(5, 6) if transposed else nn.Linear(6, 5)
    with torch.no_grad():
        for p in before.parameters():
            p.normal_(generator=torch.Generator().manual_seed(p.numel()))
    return SpectralLinear(before, SMALL, rank, torch.Generator().manual_seed(0))


# ---- one layer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [2, 5])
@pytest.mark.parametrize("transposed", [False, True], ids=["linear", "conv1d"])
def test_gradients_by_hand(rank: int, transposed: bool) -> None:
    """S has its true gradient, trained vectors theirs without the factor S_i, frozen ones none."""
    layer, x = one(rank, transposed), torch.randn(2, 3, 6, requires_grad=True)
    U, S, V = (t.requires_grad_() for t in layer.factors())
    out = nn.functional.linear(x, (U * S) @ V.T, layer.bias)
    torch.testing.assert_close(layer(x), out, rtol=1e-5, atol=1e-5)
    true = dict(zip("xUSVb", torch.autograd.grad(out.square().sum(), [x, U, S, V, layer.bias]), strict=True))
    layer(x).square().sum().backward()
    torch.testing.assert_close(layer.S.grad, true["S"], rtol=1e-4, atol=1e-4)
    for ours, name in ((layer.U.grad, "U"), (layer.V.grad, "V")):
        torch.testing.assert_close(ours * S[:rank], true[name][:, :rank], rtol=1e-4, atol=1e-4)
        assert ours.shape[1] == rank
    torch.testing.assert_close(layer.bias.grad, true["b"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad, true["x"], rtol=1e-4, atol=1e-4)
    assert (layer.U_rest is None) == (rank == 5) and (rank == 5 or layer.U_rest.grad is None)


@pytest.mark.parametrize("transposed", [False, True], ids=["linear", "conv1d"])
def test_it_starts_as_the_layer_it_was(transposed: bool) -> None:
    before = tf.pytorch_utils.Conv1D(7, 4) if transposed else nn.Linear(4, 7)
    layer = SpectralLinear(before, SMALL, 2, torch.Generator())
    torch.testing.assert_close(layer.weight, before.weight)
    torch.testing.assert_close(layer.plain().weight, before.weight)
    assert type(layer.plain()) is type(before) and layer.plain().bias is before.bias
    assert lengths_off(layer) < 1e-5 and orthogonality_off(layer) < 1e-5 and layer.draws == 2


def test_draws_follow_the_papers_probabilities() -> None:
    s = torch.tensor([6.0, 0.0, 3.0, 1.0])
    assert probabilities(s).tolist() == pytest.approx([0.125 + 0.3, 0.125, 0.125 + 0.15, 0.125 + 0.05])
    rng = torch.Generator().manual_seed(0)
    first = torch.bincount(torch.stack([drawn(s, 1, rng)[0] for _ in range(2000)]), minlength=4) / 2000
    assert (first - probabilities(s)).abs().max() < 0.04
    for _ in range(20):
        order = drawn(s, 2, rng)
        assert sorted(order.tolist()) == [0, 1, 2, 3] and order[0] < order[1] and order[2] < order[3], (
            "without replacement"
        )
    assert drawn(s, 4, rng).tolist() == [0, 1, 2, 3] == drawn(s, 9, rng).tolist()
    assert probabilities(torch.zeros(3)).min() > 0


# ---- training ------------------------------------------------------------------------------------


def test_with_all_pairs_drawn_it_is_full_training_of_the_factors() -> None:
    """Three steps of gradient descent, beside the same steps by hand on a plain model's gradients."""
    lr, method = 3.0, Sst(rank=99, interval=100, warmup_steps=0)
    run, plain = train(build(layers=1), method, Sgd(lr=lr)), train(build(layers=1), Sgd(lr=lr))
    factors = {n: m.factors() for n, m in layers(run.model).items()}
    for step in range(3):
        plain.ctx.step = step
        grads = plain.gradients([plain.pull()])
        with torch.no_grad():
            for name, (U, S, V) in factors.items():
                G = grads.pop(f"{name}.weight")
                new = U - lr * G @ V, (S - lr * (U * (G @ V)).sum(0)).clamp(min=0), V - lr * G.T @ U
                factors[name] = U, S, V = new[0] / new[0].norm(dim=0), new[1], new[2] / new[2].norm(dim=0)
                plain.params[f"{name}.weight"].copy_((U * S) @ V.T)
            for name, grad in grads.items():
                plain.params[name].sub_(lr * grad)
        run.run(until=step + 1)
    start = {n: as_linear_weight(m) for n, m in build(layers=1).named_modules() if n in factors}
    for name, weight in weights(run.model).items():
        torch.testing.assert_close(weight, plain.params[f"{name}.weight"], rtol=1e-4, atol=1e-5)
    assert max((w - start[n]).abs().max() for n, w in weights(run.model).items()) > 0.02, "they have moved"
    others = [n for n in plain.params if n in run.params]
    assert others and all(
        torch.allclose(run.params[n], plain.params[n], rtol=1e-4, atol=1e-5) for n in others
    )


def test_all_values_and_the_drawn_vectors_move_and_an_optimizer_remembers_no_more() -> None:
    run = train(build(layers=1), SMALL, Adamw(lr=1e-2))
    before = {n: p.clone() for n, p in run.params.items()}
    run.run(until=2)
    for name, layer in layers(run.model).items():
        assert torch.equal(layer.U_rest, before[f"{name}.U_rest"]) and torch.equal(
            layer.V_rest, before[f"{name}.V_rest"]
        )
        assert all((run.params[f"{name}.{p}"] != before[f"{name}.{p}"]).float().mean() > 0.9 for p in "USV")
        assert lengths_off(layer) < 1e-5 and layer.S.min() >= 0
    moments = {n: leaf["exp_avg"].numel() for n, leaf in run.states["adamw.1"]["param"].items()}
    q = "model.layers.0.self_attn.q_proj"
    assert {n: size for n, size in moments.items() if n.startswith(q)} == {
        f"{q}.U": 32 * 4,
        f"{q}.S": 32,
        f"{q}.V": 32 * 4,
    }


def test_a_value_does_not_fall_below_zero() -> None:
    run = train(build(layers=1), SMALL, Adamw(lr=1.0))
    run.run(until=1)
    assert all(layer.S.min() == 0 for layer in layers(run.model).values())


def turn(run: Train) -> None:
    """What controllers ask for before the next step."""
    for who, command in run.commands():
        run.obey(who, command)


def test_a_draw_changes_no_weight_and_what_is_remembered_follows() -> None:
    run = train(build(layers=1), SMALL, Adamw(lr=1e-2))
    run.run(until=4)
    remembered, name = run.states["adamw.1"]["param"], "model.layers.0.self_attn.q_proj"
    S, moment, before = (
        run.params[f"{name}.S"].clone(),
        remembered[f"{name}.S"]["exp_avg"].clone(),
        weights(run.model),
    )
    turn(run)
    order = torch.stack([(value == S).nonzero()[0, 0] for value in run.params[f"{name}.S"]])
    assert sorted(order.tolist()) == list(range(32)) and order.tolist() != list(range(32))
    remembered = run.states["adamw.1"]["param"]
    assert (
        torch.equal(remembered[f"{name}.S"]["exp_avg"], moment[order])
        and remembered[f"{name}.S"]["step"] == 4
    )
    assert (
        f"{name}.U" not in remembered
        and f"{name}.V" not in remembered
        and remembered["model.norm.weight"]["step"] == 4
    )
    for n, weight in weights(run.model).items():
        torch.testing.assert_close(weight, before[n], rtol=1e-4, atol=1e-6)
    run.run(until=5)
    assert run.states["adamw.1"]["param"][f"{name}.U"]["step"] == 1


def test_after_a_round_vectors_are_orthogonal_again() -> None:
    """Keys have 16 pairs here: 4 draws of 4, so that step 16 decomposes them, and the matrix stays."""
    run = train(build(layers=1), SMALL, Adamw(lr=3e-2), steps=20)
    layer = layers(run.model)["model.layers.0.self_attn.k_proj"]
    run.run(until=16)
    off, weight, value = orthogonality_off(layer), layer.weight.detach().clone(), layer.S.detach().clone()
    assert off > 1e-2 and lengths_off(layer) < 1e-5
    turn(run)
    assert orthogonality_off(layer) < 1e-5
    torch.testing.assert_close(layer.weight, weight, rtol=1e-4, atol=1e-5)
    found = layer.S.detach().sort(descending=True).values
    torch.testing.assert_close(found, torch.linalg.svdvals(weight), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, value.sort(descending=True).values, rtol=1e-2), (
        "values were none of the matrix any more"
    )
    assert f"{layer_name(run, layer)}.S" not in run.states["adamw.1"]["param"]
    query = layers(run.model)["model.layers.0.self_attn.q_proj"]
    assert orthogonality_off(query) > 1e-3, "32 pairs need 8 draws"


def layer_name(run: Train, layer: SpectralLinear) -> str:
    return next(n for n, m in run.model.named_modules() if m is layer)


def test_steps_after_a_draw_are_warmed_up() -> None:
    moved = {}
    for warmup in (0, 4):
        run = train(build(layers=1), Sst(rank=4, interval=8, warmup_steps=warmup), Sgd(lr=1e-2))
        name = "model.layers.0.mlp.up_proj.S"
        before = run.params[name].clone()
        run.run(until=1)
        moved[warmup] = run.params[name] - before
        run.run(until=4)
        assert not run.states["sst.1"]["param"], "no copy is kept once steps are whole"
    torch.testing.assert_close(moved[4], moved[0] / 4, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_and_its_export_is_a_plain_model_of_the_same_function(family: str, tmp_path: Path) -> None:
    method = Sst(rank=4, interval=3, warmup_steps=1)
    run = train(build(family, layers=1), method, Adamw(lr=2e-2))
    assert {f"{n}.weight" for n in layers(run.model)} == method.claims(build(family, layers=1))
    run.run(until=1)
    first = run.row["loss"]
    run.run()
    assert run.row["loss"] < 0.9 * first
    with torch.no_grad():
        logits = run.model.eval()(IDS).logits
        method.fold(run.model)
    families.save(run.model, tmp_path, None)
    plain = families.load(tmp_path, "here").eval()
    assert [type(m) for m in run.model.modules()] == [type(m) for m in plain.modules()]
    with torch.no_grad():
        torch.testing.assert_close(plain(IDS).logits, logits, rtol=1e-4, atol=1e-5)


def test_bf16_autocast_has_exact_factors_and_near_gradients() -> None:
    grads = []
    for half in (False, True):
        model = build(layers=1)
        SMALL.operate(model, Context())
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            model(IDS, labels=IDS).loss.backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    for name, grad in grads[1].items():
        assert grad.dtype == torch.float32
        assert (grad - grads[0][name]).norm() < 0.1 * grads[0][name].norm(), name


def test_it_acts_on_a_skeleton() -> None:
    model = families.skeleton(build().config, "here")
    SMALL.operate(model, Context())
    assert layers(model)["model.layers.0.mlp.up_proj"].U.shape == (48, 4)


def test_intervals_are_steps_or_shares() -> None:
    assert [Sst(interval=i).every(100) for i in (0.05, 7, 1e-9)] == [5, 7, 1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rank": 0}, "rank must be"),
        ({"interval": 0}, "interval above 0"),
        ({"interval": 2.5}, "interval must be a share"),
        ({"warmup_steps": -1}, "warmup"),
    ],
)
def test_bad_settings(given: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(Sst, given, "here")
