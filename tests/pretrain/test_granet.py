"""GraNet: the density is the cubic schedule's to the weight; pruning is global, regrowth by matrix, from
zero where a weight was hidden, to the end."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.pretrain.small import FAMILIES, build, train
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.method import State, Tensors, Update
from trainwright.core.settings import make
from trainwright.lm.masks import largest, threshold
from trainwright.optim.adamw import Adamw
from trainwright.optim.ema import Ema
from trainwright.pretrain.granet import Granet, densities


def masks(run: Train) -> Tensors:
    return {n: leaf["hidden"].clone() for n, leaf in run.states["granet.1"]["param"].items()}


def visible(run: Train) -> int:
    return sum(int((~h).sum()) for h in masks(run).values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("initial", "regeneration"), [(1.0, 0.5), (0.5, 0.5), (1.0, 0.0)], ids=["dense", "sparse", "gmp"]
)
def test_the_density_is_that_of_the_schedule_to_the_weight(
    family: str, initial: float, regeneration: float
) -> None:
    """Every 2 of 16 steps from step 4 to step 12: pruning 2 begins, pruning 6 ends, each in between is a
    quarter further."""
    method = Granet(
        density=0.1, initial_density=initial, regeneration=regeneration, every=2, begin=4, end=0.75
    )
    run = train(build(family, layers=1), method, Adamw(lr=1e-2), steps=16)
    total, start = sum(h.numel() for h in masks(run).values()), visible(run)
    assert abs(start - initial * total) <= len(masks(run)) / 2, (
        "each matrix has its number of weights, rounded"
    )
    expected = {4: initial}
    for quarter, step in enumerate((6, 8, 10, 12), 1):
        expected[step] = 0.1 + (initial - 0.1) * (1 - quarter / 4) ** 3
    now = start
    for step in range(1, 17):
        run.run(until=step)
        now = min(start, round(expected[step] * total)) if step in expected else now
        assert visible(run) == now and run.row["density"] == now / total, step
        zeros = {n: int((run.params[n] != 0).sum()) for n in masks(run)}
        assert sum(zeros.values()) <= now, "a checkpoint is as sparse as the mask"
    assert now == round(0.1 * total)


def test_pruning_ranks_all_matrices_together() -> None:
    """A matrix of small weights loses them all while the other loses none."""
    params = {"small": torch.linspace(0.1, 0.4, 4).view(2, 2), "large": -torch.linspace(1, 4, 4).view(2, 2)}
    hidden = {n: torch.zeros(2, 2, dtype=torch.bool) for n in params}
    state: State = {
        "param": {n: {"hidden": h} for n, h in hidden.items()},
        "shared": {"visible": 8, "weights": 8},
    }
    Granet().prune(params, state, 0.5)
    assert state["param"]["small"]["hidden"].all() and not state["param"]["large"]["hidden"].any()
    Granet().prune(params, state, 0.25)
    assert state["param"]["large"]["hidden"].tolist() == [[True, True], [False, False]]
    assert state["shared"]["visible"] == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 100, 777, 1000])
def test_exactly_so_many_stay_and_of_equal_ones_the_first(dtype: torch.dtype, count: int) -> None:
    rng = torch.Generator().manual_seed(0)
    weights = {
        n: torch.randn(s, generator=rng).to(dtype)
        for n, s in {"a": (20, 30), "b": (40, 30), "c": (7,)}.items()
    }
    weights["a"][:10] = weights["a"][10:]  # twins
    hidden = {n: torch.rand(w.shape, generator=rng) < 0.3 for n, w in weights.items()}
    size = torch.cat([w.abs().float().masked_fill(hidden[n], -1).flatten() for n, w in weights.items()])
    first = size.sort(descending=True, stable=True).indices[:count]
    expected = torch.ones(len(size), dtype=torch.bool).index_fill(0, first, False)
    found = largest(weights, hidden, count)
    assert torch.equal(torch.cat([found[n].flatten() for n in weights]), expected)


def test_visible_zeros_go_first_and_do_not_open_the_hidden_ones() -> None:
    """With >= in place of > a threshold of zero would make a matrix dense."""
    weights = {"w": torch.tensor([0.0, 0.0, 0.0, 0.0, 3.0, 0.0])}
    hidden = {"w": torch.tensor([True, False, False, True, False, True])}
    assert largest(weights, hidden, 2)["w"].tolist() == [True, False, True, True, False, True]
    assert all(torch.equal(largest(weights, hidden, count)["w"], hidden["w"]) for count in (3, 6))


def test_the_threshold_is_the_one_that_sorting_finds() -> None:
    sizes = torch.randn(5000, generator=torch.Generator().manual_seed(0)).abs()
    sizes[:3] = torch.tensor([1e-45, 1e38, 0.0])
    order = sizes.sort(descending=True).values
    for count in (1, 2, 17, 2500, 4999, 5000):
        assert threshold([sizes[:99], sizes[99:]], count) == float(order[count - 1])
    assert threshold([-torch.ones(4)], 2) == 0.0


def test_regrowth_by_hand() -> None:
    """Six visible weights and a share of a half: the three smallest go; of the six now hidden the three
    steepest come: two of those just removed, which keep their values, and one from 0."""
    w = torch.tensor([[5.0, -0.628, 0.0], [0.5, 0.0, -6.0], [7.0, 0.0, 0.747]])
    g = torch.tensor([[9.0, -8.0, 1.0], [0.1, -4.0, 9.0], [9.0, 0.2, -3.0]])
    hidden = torch.tensor([[False, False, True], [False, True, False], [False, True, False]])
    other = torch.arange(1.0, 5).view(2, 2)
    params, state = (
        {"w": w, "other": other.clone()},
        {
            "param": {
                n: {"hidden": h} for n, h in (("w", hidden), ("other", torch.zeros(2, 2, dtype=torch.bool)))
            }
        },
    )
    ctx = Context(step=0, steps=10**9, grads={"w": g, "other": 100 * torch.ones(2, 2)})
    Granet(regeneration=0.4).regenerate("w", params, state, ctx)  # 0.4 of six is 2.4, rounded up
    assert state["param"]["w"]["hidden"].tolist() == [
        [False, False, True],
        [True, False, False],
        [False, True, False],
    ]
    expected = torch.tensor([[5.0, -0.628, 0.0], [0.0, 0.0, -6.0], [7.0, 0.0, 0.747]])
    assert torch.equal(params["w"], expected), "0.628 and 0.747 are chosen again and keep their values"
    assert torch.equal(ctx.forgotten["w"], state["param"]["w"]["hidden"]), "and what is remembered of them"
    assert torch.equal(params["other"], other) and "other" not in ctx.forgotten


@pytest.mark.parametrize("regeneration", [0.0, 0.5])
def test_a_dense_start_loses_what_is_pruned_and_no_more_than_is_regrown(regeneration: float) -> None:
    """With half of all weights exchanged at the first event, most removed ones are chosen again: before the
    event and after it a visible weight is the same unless it was hidden in between."""
    method = Granet(density=0.1, every=2, begin=0, end=150, regeneration=regeneration)
    run = train(build(), method, Adamw(lr=1e-2), steps=160)
    run.run(until=2)
    total = sum(h.numel() for h in masks(run).values())
    hidden = sum(int(h.sum()) for h in masks(run).values())
    zeros = sum(int((run.params[n] == 0).sum()) for n in masks(run))
    assert hidden == total - round((0.1 + 0.9 * (1 - 1 / 75) ** 3) * total)
    assert hidden <= zeros <= 2 * hidden, "visible zeros are those that were pruned and chosen again"


class Spy(Update):
    """Keeps the gradients of the last step."""

    def settle(self, params: Tensors, state: State, ctx: Context) -> None:
        seen.update({n: g.clone() for n, g in ctx.grads.items()})


seen: Tensors = {}


@pytest.mark.parametrize("order", ["before", "behind"])
def test_each_matrix_exchanges_its_smallest_for_the_steepest_of_the_dense_gradient(order: str) -> None:
    """To the last step, long after pruning has ended, at one density; and no memory of what it was stays
    with a weight."""
    method = Granet(density=0.3, regeneration=0.4, every=4, end=4)
    around = [method, Adamw(lr=1e-2)] if order == "before" else [Adamw(lr=1e-2), method]
    run = train(build(), Ema(decay=0.5), Spy(), *around, steps=16)
    for step in (8, 12, 16):
        run.run(until=step - 1)
        before, dense = masks(run), {n: p.detach().clone() for n, p in run.params.items()}
        run.run(until=step)
        share = 0.005 + 0.395 / 2 * (1 + math.cos(math.pi * step / 16))
        moments = run.states["adamw.1"]["param"]
        for n, after in masks(run).items():
            count, gained, lost = (
                math.ceil(share * int((~before[n]).sum())),
                before[n] & ~after,
                ~before[n] & after,
            )
            assert int(gained.sum()) == int(lost.sum()) <= count, "regrowth keeps the number of each matrix"
            assert (seen[n][before[n]] != 0).float().mean() > 0.99, "hidden weights have a gradient"
            assert not run.params[n][gained].any(), "what was hidden returns from 0"
            assert seen[n].abs()[gained].min() >= seen[n].abs()[after].max(), "the steepest come back"
            stayed = ~before[n] & ~after
            moved = (run.params[n] - dense[n])[stayed].abs().max()  # in this step, before the event
            smaller = dense[n].abs()[~before[n]] < dense[n].abs()[lost].max() - 2 * moved
            assert int(smaller.sum()) < count, "those that go are among the smallest"
            for leaf in (
                moments[n]["exp_avg"],
                moments[n]["exp_avg_sq"],
                run.states["ema.1"]["param"][n]["mean"],
            ):
                assert not leaf[after | gained].any() and leaf[stayed].all()
    assert visible(run) == round(0.3 * sum(h.numel() for h in masks(run).values()))


@pytest.mark.parametrize("average", [0, 1, 2])
def test_the_average_that_is_measured_is_as_sparse(average: int) -> None:
    methods = [Granet(density=0.3, every=2, end=4), Adamw(lr=1e-2)]
    methods.insert(average, Ema(decay=0.9, warmup=False))
    run = train(build(layers=1), *methods, steps=7)
    run.run()
    with run.viewed():
        assert not any(run.params[n][h].any() for n, h in masks(run).items())


def by_proportion(shapes: dict[str, torch.Size], density: float) -> bool:
    found = densities(shapes, density)
    exact = math.isclose(
        sum(found[n] * s.numel() for n, s in shapes.items()),
        density * sum(s.numel() for s in shapes.values()),
    )
    scales = {round(found[n] * s.numel() / sum(s), 9) for n, s in shapes.items() if found[n] < 1}
    return exact and len(scales) <= 1 and all(0 < d <= 1 for d in found.values())


def test_a_sparse_start_has_the_densities_of_erk() -> None:
    """Two of 100 x 100 and one of 10 x 10: with the small one dense, (0.2 x 20100 - 100) / 400 = 9.8 times
    200 / 10000 each."""
    shapes = {"a": torch.Size([100, 100]), "b": torch.Size([100, 100]), "c": torch.Size([10, 10])}
    assert densities(shapes, 0.2) == pytest.approx({"a": 0.196, "b": 0.196, "c": 1.0})
    assert densities(shapes, 0.02) == pytest.approx(
        {"a": 402 / 420 * 0.02, "b": 402 / 420 * 0.02, "c": 402 / 420 * 0.2}
    )
    shapes |= {"conv": torch.Size([8, 16, 3, 3])}
    assert all(by_proportion(shapes, d) for d in (0.01, 0.05, 0.2, 0.5, 0.9)) and set(
        densities(shapes, 1.0).values()
    ) == {1.0}
    run = train(build(), Granet(initial_density=0.4, density=0.3, end=4), Adamw())
    share = densities({n: run.params[n].shape for n in masks(run)}, 0.4)
    assert {n: int((~h).sum()) for n, h in masks(run).items()} == {
        n: round(d * run.params[n].numel()) for n, d in share.items()
    }
    assert not any(run.params[n][h].any() for n, h in masks(run).items())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"density": 0.0}, "density and initial_density"),
        ({"density": 0.6, "initial_density": 0.5}, "0.5 to 0.6"),
        ({"regeneration": 1.0}, "regeneration must be"),
        ({"regeneration": 0.001}, "at least 0.005"),
        ({"every": 1.5}, "every must be"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(Granet, settings, "here")


@pytest.mark.parametrize("settings", [{"every": 100}, {"every": 5, "begin": 11}, {"end": 13}])
def test_a_stage_too_short_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match="does not fit into a stage of 12 steps"):
        train(build(), Granet(**settings), Adamw())
    run = train(build(), Granet(**settings), Adamw(), steps=1)  # as a plan tries it
    assert not any(h.any() for h in masks(run).values())


def test_a_matrix_without_a_gradient_keeps_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an expert that no token of the step went to."""
    run = train(build(layers=1), Granet(density=0.5, every=1, end=1), Adamw(), steps=3)
    run.run(until=1)
    before, inner, name = masks(run), run.gradients, "model.layers.0.mlp.up_proj.weight"

    def without(batches: list, note: bool = False) -> dict[str, Tensor]:
        return {n: g for n, g in inner(batches, note).items() if n != name}

    monkeypatch.setattr(run, "gradients", without)
    run.run(until=2)
    same = {n: torch.equal(h, before[n]) for n, h in masks(run).items()}
    assert same.pop(name) and not any(same.values())
