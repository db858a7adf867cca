"""SPDF: the same random share of every matrix is exactly zero, whatever else acts, until a stage goes on
without the mask."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.pretrain.small import FAMILIES, build, train
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.settings import make
from trainwright.finetune.lora import Lora
from trainwright.lm.masks import maskable
from trainwright.optim.adamw import Adamw
from trainwright.optim.ema import Ema
from trainwright.optim.torch_optim import TorchOptim
from trainwright.optim.weight_decay import WeightDecay
from trainwright.pretrain.spdf import Spdf

MUON = (TorchOptim(optimizer="Muon", params="*_proj.weight", lr=0.05), Adamw(params="!*_proj.weight"))
ORDERS = {
    "before": (Spdf(), Adamw(lr=0.01), Ema(decay=0.5)),
    "behind": (Adamw(lr=0.01), Spdf(), Ema(decay=0.5)),
    "average_first": (Ema(decay=0.9, warmup=False), Adamw(lr=0.01), Spdf()),
    "decay_last": (
        Spdf(),
        Adamw(lr=0.01, weight_decay=0.0),
        Ema(decay=0.5),
        WeightDecay(rate=1.0, params="*_proj.weight"),
    ),
    "muon_before": (Ema(decay=0.5), Spdf(), *MUON),
    "muon_behind": (Ema(decay=0.5), *MUON, Spdf()),
}
"""Muon mixes all entries of a matrix, so that it moves weights without a gradient."""


def hidden(run: Train) -> dict[str, Tensor]:
    key = next(k for k, m in run.named_methods if isinstance(m, Spdf))
    return {n: leaf["hidden"] for n, leaf in run.states[key]["param"].items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sparsity", [0.5, 0.75])
def test_every_matrix_of_the_blocks_has_exactly_its_share_of_zeros(family: str, sparsity: float) -> None:
    model = build(family)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    run = train(model, Spdf(sparsity=sparsity), Adamw())
    matrices = {n for n, p in before.items() if p.ndim == 2 and ("layers." in n or ".h." in n)}
    assert hidden(run).keys() == matrices == Spdf().claims(build(family))
    for n, p in run.params.items():
        zeros = hidden(run).get(n, torch.zeros_like(p, dtype=torch.bool))
        assert int(zeros.sum()) == (round(sparsity * p.numel()) if n in matrices else 0)
        assert torch.equal(p, before[n].masked_fill(zeros, 0)), "the visible weights start as they were"


@pytest.mark.parametrize("order", ORDERS)
def test_hidden_weights_stay_zero_through_moments_decay_and_averages(order: str) -> None:
    run = train(build(), *ORDERS[order])
    start = {n: p.detach().clone() for n, p in run.params.items()}
    for until in (1, 3, 6):
        run.run(until=until)
        leaves = [
            (n, t)
            for state in run.states.values()
            for n, named in state.get("param", {}).items()
            for t in named.values()
            if n in hidden(run) and t.shape == run.params[n].shape and t.is_floating_point()
        ]
        assert {n for n, _ in leaves} == hidden(run).keys()
        assert not any(t[hidden(run)[n]].any() for n, t in [*run.params.items(), *leaves] if n in hidden(run))
    with run.viewed():
        assert not any(run.params[n][h].any() for n, h in hidden(run).items())
    for n, h in hidden(run).items():
        assert (run.params[n] != start[n])[~h].float().mean() > 0.99, "and the others train"


def test_a_visible_weight_takes_its_dense_step() -> None:
    """The mask scales nothing: plain gradient descent moves visible weights by their gradient at the sparse
    weights."""
    run = train(build(), Spdf(), TorchOptim(optimizer="SGD", lr=0.1))
    before = copy.deepcopy(run.model)
    reference = train(before, TorchOptim(optimizer="SGD", lr=0.1))
    run.run(until=1)
    reference.run(until=1)
    for n, p in run.params.items():
        expected = (
            reference.params[n].masked_fill(hidden(run)[n], 0) if n in hidden(run) else reference.params[n]
        )
        assert torch.equal(p, expected)


def test_the_next_stage_frees_them_from_zero_and_trains_all() -> None:
    first = train(build(), Spdf(), Adamw(lr=0.01))
    first.run(until=4)
    masks = hidden(first)
    second = train(copy.deepcopy(first.model), Adamw(lr=0.01))
    ids = torch.arange(16)[None]
    assert torch.equal(second.model(ids).logits, first.model(ids).logits)
    assert all(not second.params[n][h].any() for n, h in masks.items())
    second.run(until=1)
    for n, h in masks.items():
        assert (second.params[n][h] != 0).float().mean() > 0.99


def test_the_mask_depends_on_seed_name_and_share_alone() -> None:
    def masks(seed: int, *more: object, **settings: object) -> dict[str, Tensor]:
        return hidden(train(build(layers=1), Spdf(**settings), Adamw(), *more, seed=seed))

    one, name = masks(0), "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(one[name], masks(0, Ema())[name]) and not torch.equal(one[name], masks(1)[name])
    narrow = masks(0, params="*.up_proj.weight")
    assert list(narrow) == [name] and torch.equal(one[name], narrow[name])
    assert not torch.equal(one[name], one["model.layers.0.mlp.gate_proj.weight"])
    assert not (masks(0, sparsity=0.5)[name] & ~one[name]).any(), (
        "a sparser mask of the same seed hides the same and more"
    )


def test_gradients_stay_as_they_are_where_another_update_reads_them() -> None:
    method, state = Spdf(), {"param": {"w": {"hidden": torch.tensor([True, False])}}}
    raw = {"w": torch.ones(2), "b": torch.ones(1)}
    out = method.update(raw, {}, state, Context(grads=raw))
    assert out["w"].tolist() == [0, 1] and out["b"] is raw["b"] and raw["w"].tolist() == [1, 1]
    assert method.update(raw, {}, state, Context())["w"] is raw["w"], (
        "else no second copy of all gradients is made"
    )


class Experts(nn.Module):
    """Two blocks with stacked experts, a router and a table of positions; a head outside."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"gate": nn.Linear(4, 2), "places": nn.Embedding(8, 4)}) for _ in range(2)
        )
        for block in self.blocks:
            block.register_parameter("experts", nn.Parameter(torch.ones(2, 4, 4)))
            block.register_parameter("mix", nn.Parameter(torch.ones(1, 1, 4)))
        self.head = nn.Linear(4, 8)


def test_which_weights_can_be_hidden() -> None:
    assert set(maskable(Experts(), "*")) == {
        f"blocks.{i}.{n}" for i in (0, 1) for n in ("gate.weight", "experts")
    }
    vision = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    assert set(maskable(vision, "*")) == {"0.weight", "3.weight"}, "where nothing repeats, every layer counts"
    assert set(maskable(vision, "!3.*")) == {"0.weight"} and maskable(vision, "!*") == {}


@pytest.mark.parametrize("glob", ["*embed*", "*.query.weight", "*norm.weight"])
def test_a_glob_that_hides_nothing_is_refused(glob: str) -> None:
    with pytest.raises(UserError, match=r"matches no weight that can be pruned.*q_proj\.weight"):
        train(build(), Spdf(params=glob), Adamw())


def test_another_owner_of_the_same_weights_is_refused() -> None:
    with pytest.raises(UserError, match=r"both claim .*_proj\.weight"):
        train(build(), Lora(), Spdf(), Adamw())
    with pytest.raises(UserError, match=r"both claim .*_proj\.weight"):
        train(build(), Spdf(), Spdf(sparsity=0.5), Adamw())


@pytest.mark.parametrize("sparsity", [1.0, -0.1])
def test_a_share_out_of_range_is_refused(sparsity: float) -> None:
    with pytest.raises(UserError, match="sparsity must be"):
        make(Spdf, {"sparsity": sparsity}, "here")
