"""Training in a random subspace: what P is, the paper's toy problem of known dimension, and
the search of d_int90."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scipy.linalg import hadamard as matrix
from torch import Tensor, nn

from tests.lm.architectures import IDS, make, moved
from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make as settings
from trainwright.families import deltas
from trainwright.finetune.intrinsic_dimension._projections import KINDS, Fastfood, hadamard
from trainwright.finetune.intrinsic_dimension.intrinsic_dimension import IntrinsicDimension, d90

CPU = torch.device("cpu")
SIZES = {"embedding": 4000, "weight": 1536, "bias": 5, "norm": 1}
PROJECTIONS = pytest.mark.parametrize("projection", ["dense", "sparse", "fastfood"])


def columns(projection: str, dimension: int, sizes: dict[str, int] = SIZES) -> dict[str, Tensor]:
    """P by parameter, from its products with the unit vectors."""
    maps = KINDS[projection](sizes, dimension, lambda name: Context(seed=3).rng(name, at=0), CPU)
    return {n: torch.stack([m(e) for e in torch.eye(dimension)], 1) for n, m in maps.items()}


# ---- P -----------------------------------------------------------------------------------------------------


@PROJECTIONS
def test_columns_have_length_one_over_all_parameters_together(projection: str) -> None:
    P = columns(projection, 24)
    assert {n: p.shape for n, p in P.items()} == {n: (size, 24) for n, size in SIZES.items()}
    whole = torch.cat(list(P.values()))
    close = 1e-4 if projection != "fastfood" else 0.15
    assert torch.allclose(whole.norm(dim=0), torch.ones(24), atol=close)
    share = P["weight"].square().sum() / 24
    expected = {
        "dense": 1536 / 5542,
        "fastfood": 1536 / 5542,
        "sparse": 1536**0.5 / sum(s**0.5 for s in SIZES.values()),
    }
    # by parameter it would be 1 each
    assert abs(share - expected[projection]) < 0.05
    assert abs((whole.T @ whole - torch.eye(24)).fill_diagonal_(0)).max() < 0.1


@PROJECTIONS
def test_the_gradient_is_the_transpose(projection: str) -> None:
    maps = KINDS[projection](SIZES, 24, lambda name: Context().rng(name, at=0), CPU)
    for name, P in {n: torch.stack([m(e) for e in torch.eye(24)], 1) for n, m in maps.items()}.items():
        theta, grad = torch.randn(24, requires_grad=True), torch.randn(SIZES[name])
        found, = torch.autograd.grad(maps[name](theta), theta, grad)
        assert torch.allclose(found, P.T @ grad, atol=1e-4) and torch.allclose(
            maps[name](theta), P @ theta, atol=1e-4
        )


def test_fast_transform_is_the_matrix() -> None:
    for length in (1, 2, 8, 64, 128):
        x = torch.randn(length)
        assert torch.allclose(hadamard(x), torch.tensor(matrix(length), dtype=torch.float32) @ x, atol=1e-4)


def test_fastfood_by_matrices() -> None:
    """H G Pi H B of the paper for a single parameter, with the scale of the released code."""
    f, d, entries, length = Fastfood(50, 7, Context().rng("f", at=0), CPU, 50), 7, 50, 64
    H = torch.tensor(matrix(length), dtype=torch.float64)
    g, permute = f.gauss.double(), torch.eye(length, dtype=torch.float64)[f.places.long()]
    P = (H @ g.diag() @ permute @ H @ f.signs.double().diag())[:entries, :d]
    assert torch.allclose(torch.stack([f(e) for e in torch.eye(d)], 1).double(), P, atol=1e-5)
    raw = g / g.norm()                                                               # G / sqrt(sum G^2)
    assert torch.allclose(g, raw / math.sqrt(length) / math.sqrt(entries / length), atol=1e-6)
    assert set(f.signs.tolist()) == {-1, 1} and sorted(f.places.tolist()) == list(range(64))


def test_sparse_entries_have_the_density_and_both_signs() -> None:
    """Very sparse random projections: one entry in sqrt(size), by parameter."""
    P = columns("sparse", 40)
    for name, size in (("embedding", 4000), ("weight", 1536)):
        share = (P[name] != 0).double().mean()
        assert abs(share - size**-0.5) < 5 * (size**-0.5 / (40 * size)) ** 0.5
        assert abs(P[name].sign().sum() / (P[name] != 0).sum()) < 0.1
    assert (columns("sparse", 40)["norm"] != 0).all()


def test_no_dense_matrix_that_does_not_fit() -> None:
    with pytest.raises(
        UserError, match=r"dense projection would take 37252\.9 GiB: set projection = \"fastfood\""
    ):
        KINDS["dense"]({"w": 10**9}, 10**4, lambda n: Context().rng(n), CPU)


# ---- the paper's toy problem -------------------------------------------------------------------------------


class Toy(nn.Module):
    """1000 parameters; the first hundred should add up to 1, the second to 2, and so
    on. Its dimension is 10."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(1000))

    def forward(self) -> Tensor:
        return (self.theta.view(10, 100).sum(1) - torch.arange(1, 11)).square().sum()


def train_toy(dimension: int | None, rate: float) -> float:
    """exp(-loss), as the paper scores it: 1 is a solution."""
    model = Toy()
    if dimension is not None:
        IntrinsicDimension(dimension=dimension, projection="dense").operate(model, Context(seed=2))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.LBFGS(trained, lr=rate, max_iter=300, tolerance_grad=1e-9, tolerance_change=0,
                                  line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model()
        loss.backward()
        return loss
    optimizer.step(closure)
    return math.exp(-float(model().detach()))


def test_the_papers_toy_problem_has_dimension_ten() -> None:
    found = d90(train_toy, [12, 4, 8, 9, 10, 11], [1.0])
    assert found.dimension == 10 and list(found.tried) == [4, 8, 9, 10]
    assert found.baseline > 0.999 and found.threshold == 0.9 * found.baseline
    assert found.tried[9] < 0.5 < found.tried[10]


def test_the_search_gives_both_sides_the_same_learning_rates() -> None:
    asked = []

    def measure(dimension: int | None, rate: float) -> float:
        asked.append((dimension, rate))
        return {None: 0.8, 5: 0.2, 50: 0.71, 100: 0.73}[dimension] + rate
    found = d90(measure, [50, 5, 100], [0.0, 0.01])
    assert (
        found.dimension == 100
        and found.baseline == 0.81
        and found.tried == pytest.approx({5: 0.21, 50: 0.72, 100: 0.74})
    )
    assert asked == [(d, r) for d in (None, 5, 50, 100) for r in (0.0, 0.01)]
    losses = d90(lambda d, r: {None: -2.0, 5: -3.9, 50: -2.19}[d], [5, 50], [1.0], start=-4.0)
    assert losses.dimension == 50 and losses.threshold == pytest.approx(-2.2)
    assert d90(measure, [5], [0.0]).dimension is None
    with pytest.raises(ValueError, match="learning rates"):
        d90(measure, [5], [])


# ---- a language model --------------------------------------------------------------------------------------


@PROJECTIONS
@pytest.mark.parametrize(
    ("kind", "given"), [("llama", {}), ("gpt2", {}), ("qwen3", {"tie_word_embeddings": True})]
)
def test_seed_and_d_numbers_are_the_model(kind: str, given: dict, projection: str, tmp_path: Path) -> None:
    method, model, before = (
        IntrinsicDimension(dimension=30, projection=projection),
        make(kind, **given),
        make(kind, **given),
    )
    start = model(input_ids=IDS).logits
    method.operate(model, Context(seed=5))
    assert torch.equal(model(input_ids=IDS).logits, start)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["subspace.theta_d"]
    assert set(model.state_dict()) == {*before.state_dict(), "subspace.theta_d"}
    logits = moved(model, size=3.0)
    assert (logits - start).abs().max() > 0.01
    deltas.write(model, [method], 5, tmp_path, None)
    kept = load_file(tmp_path / "adapter" / "intrinsic_dimension.safetensors")
    assert {n: t.shape for n, t in kept.items()} == {"theta_d": (30,)}
    plain, again = families.load(tmp_path, "test").eval(), make(kind, **given)
    assert torch.allclose(plain(input_ids=IDS).logits, logits, atol=1e-5)
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
    deltas.put(again, tmp_path / "adapter")
    method.fold(again)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in plain.state_dict().items())


def test_every_parameter_moves_and_a_tied_one_once() -> None:
    method, model, before = (
        IntrinsicDimension(dimension=30),
        make("gpt2"),
        dict(make("gpt2").named_parameters()),
    )
    method.operate(model, Context())
    moved(model, size=1.0)
    table = model.subspace.offset("transformer.wte.weight", before["transformer.wte.weight"].shape).detach()
    method.fold(model)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys() and all((after[n] != p).any() for n, p in before.items())
    assert torch.equal(after["transformer.wte.weight"], before["transformer.wte.weight"] + table)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_the_gradient_is_that_of_all_parameters_projected() -> None:
    model, plain = make("llama"), make("llama")
    IntrinsicDimension(dimension=12, projection="dense").operate(model, Context())
    model(input_ids=IDS, labels=IDS).loss.backward()
    plain(input_ids=IDS, labels=IDS).loss.backward()
    P = {n: model.subspace.maps[i].P for n, i in model.subspace.places.items()}
    expected = sum(P[n].T @ p.grad.flatten() for n, p in plain.named_parameters())
    assert torch.allclose(model.subspace.theta_d.grad, expected, atol=1e-5)


def test_bf16() -> None:
    model = make("llama")
    IntrinsicDimension(dimension=12).operate(model, Context())
    exact = moved(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(input_ids=IDS, labels=IDS)
    assert torch.allclose(low.logits.float(), exact, atol=0.05)
    low.loss.backward()
    assert model.subspace.theta_d.grad.dtype == torch.float32 and model.subspace.theta_d.grad.abs().sum() > 0


@pytest.mark.parametrize(("given", "words"), [
    ({}, "is needed"), ({"dimension": 0}, "dimension must be 1 or more"),
    ({"dimension": 5, "projection": "dens"}, "must be one of")])
def test_bad_settings(given: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        settings(IntrinsicDimension, given, "adapt")
