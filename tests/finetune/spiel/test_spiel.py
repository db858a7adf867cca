"""SpIEL: k places a layer for ever, dropped and regrown by both criteria, each entry of its own age,
and nothing dense kept."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.lm.architectures import IDS, make, moved
from tests.pretrain.small import build, train
from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make as settings
from trainwright.families import deltas
from trainwright.finetune.spiel._exchange import by_gradient, by_momentum
from trainwright.finetune.spiel._layer import QUIET
from trainwright.finetune.spiel._steps import adam, sm3
from trainwright.finetune.spiel.spiel import Spiel
from trainwright.lm.layers import as_linear_weight, linear_layers
from trainwright.optim.clip_gradients import ClipGradients
from trainwright.optim.ema import Ema

KINDS = pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
GROWTHS = pytest.mark.parametrize("growth", ["accumulated_gradient", "momentum_approximation"])
SHORT = {"density": 0.05, "every": 4, "capture": 2, "lr": 1e-2}


def operated(kind: str, method: Spiel):
    model = make(kind)
    method.operate(model, Context(seed=1))
    return model


# ---- the product -------------------------------------------------------------------------------------------


@KINDS
def test_gradients_are_the_dense_ones_at_the_places(kind: str) -> None:
    method, dense = Spiel(density=0.1), make(kind)
    model = operated(kind, method)
    for layer in method.mine(model).values():
        layer.candidates.copy_(layer.places.flip(0))
    model(input_ids=IDS, labels=IDS).loss.backward()
    dense(input_ids=IDS, labels=IDS).loss.backward()
    assert list(method.mine(model)) == list(linear_layers(dense, "all-linear"))
    for name, layer in method.mine(model).items():
        other = dense.get_submodule(name)
        grad = (other.weight.grad if isinstance(other, nn.Linear) else other.weight.grad.T).reshape(-1)[
            layer.places.long()
        ]
        assert torch.allclose(layer.spiel_deltas.grad, grad, rtol=1e-4, atol=1e-7)
        assert torch.allclose(layer.spiel_candidates.grad / QUIET, grad.flip(0), rtol=1e-4, atol=1e-7)
        assert layer.weight.grad is None


def test_no_dense_gradient_or_moment_is_kept() -> None:
    run = train(build(), Spiel(**SHORT), steps=6)
    run.run(until=3)
    trained = sum(len(m.places) for m in run.methods[2].mine(run.model).values())
    assert trained <= 0.05 * sum(p.numel() for p in build().parameters())
    kept = sum(t.numel() for leaves in run.states["spiel.1"]["param"].values() for t in leaves.values())
    # m, v, age; two sums of the candidates
    assert kept == 5 * trained
    grads = run.gradients([run.pull()])
    assert {n.rpartition(".")[2] for n in grads} == {"spiel_deltas", "spiel_candidates"}
    assert sum(g.numel() for g in grads.values()) == 2 * trained


# ---- drop and grow -----------------------------------------------------------------------------------------


def test_exchange_by_hand() -> None:
    places, deltas = torch.tensor([5, 9, 2, 7]), torch.tensor([0.4, -0.1, 0.2, -0.3])
    candidates, scores = torch.tensor([9, 5, 1, 8]), torch.tensor([3., 9, 2, 1])
    slots, grown = by_gradient(places, deltas, 2, candidates, scores)
    # 9 is dropped and grown: it stays; 5 is active still; 1 takes 2's
    assert slots.tolist() == [2] and grown.tolist() == [2]
    slots, new = by_momentum(torch.tensor([0, 5]), torch.tensor([0.1, 0.2]), 1, torch.tensor([[1.], [3]]),
                                    torch.tensor([[5.], [1], [2]]))
    assert slots.tolist() == [0] and new.tolist() == [3]       # of 5 1 2 / 15 3 6 without 0 and 5


@GROWTHS
def test_the_number_of_places_never_changes_and_the_first_exchange_is_of_all(growth: str) -> None:
    method = Spiel(**SHORT, growth=growth)
    run = train(build(), method, steps=12)
    layers = method.mine(run.model)
    before = {n: m.places.clone() for n, m in layers.items()}
    share: dict[int, float] = {}
    total = sum(len(p) for p in before.values())
    for step in range(1, 13):
        old = {n: set(m.places.tolist()) for n, m in layers.items()}
        run.run(until=step)
        new = {n: set(m.places.tolist()) for n, m in layers.items()}
        # as many, and no place twice
        assert all(len(new[n]) == len(before[n]) for n in new)
        share[step] = sum(len(new[n] - old[n]) for n in new) / total
    assert {s for s, moved in share.items() if moved} <= {2, 6, 10}
    assert share[2] > 0.8 and 0 < share[6] <= 0.2 * 0.5 and share[10] <= 0.2 * 2 / 12


def test_grown_are_the_largest_sums_and_begin_with_the_moments_and_age_of_what_was_seen() -> None:
    """Against dense gradients taken beside the run: candidates of step 4's first row,
    summed over steps 5 and 6."""
    method = Spiel(**SHORT, layers="*.0.mlp.up_proj")
    run = train(build(), method, ClipGradients(norm=1e30), steps=12)
    (name, layer), = method.mine(run.model).items()
    leaf = run.states["spiel.1"]["param"][f"{name}.spiel_deltas"]["adam"]
    dense: dict[int, Tensor] = {}
    for step in (3, 4, 5):
        run.run(until=step)
        dense[step + 1] = of_the_whole(run, name)
        first = of_the_whole(run, name, rows=1)
        if step == 3:
            expected = first.abs().topk(len(layer.places)).indices
    assert set(layer.candidates.tolist()) == set(expected.tolist())
    ages, places = leaf[2].clone(), layer.places.clone()
    run.run(until=6)
    changed = layer.places != places
    assert 0 < int(changed.sum()) <= int(0.2 * 0.5 * len(places))
    at = layer.places[changed].long()
    g = torch.stack([dense[5][at], dense[6][at]])
    assert torch.allclose(leaf[0, changed], g.mean(0) * (1 - 0.9**2), rtol=1e-3, atol=1e-8)
    assert torch.allclose(leaf[1, changed], g.square().mean(0) * (1 - 0.999**2), rtol=1e-3, atol=1e-12)
    assert (leaf[2, changed] == 2).all() and torch.equal(leaf[2, ~changed], ages[~changed] + 1)
    assert (run.params[f"{name}.spiel_deltas"][changed] == 0).all()
    others = torch.tensor([c for c in layer.candidates.tolist() if c not in layer.places.tolist()])
    sums = (dense[5] + dense[6]).abs()
    assert sums[at].min() >= sums[others].max() * 0.999


def of_the_whole(run, name: str, rows: int = 8) -> Tensor:
    """The dense gradient of a layer for the batch of the step to come, flat, from the weights that the
    sparse model has now."""
    method, batch = run.methods[2], run.pull()
    plain = copy.deepcopy(run.model)
    method.fold(plain)
    plain.requires_grad_(True)
    ids = batch["input_ids"][:rows]
    logits = plain(input_ids=ids).logits[:, :-1]
    nn.functional.cross_entropy(logits.reshape(-1, 64), ids[:, 1:].reshape(-1)).backward()
    return plain.get_submodule(name).weight.grad.reshape(-1)


# ---- steps -------------------------------------------------------------------------------------------------


def test_each_entry_has_an_age_of_its_own() -> None:
    """An entry of age n takes the step that torch's Adam takes after n gradients;
    neighbours are of another age."""
    draw = torch.Generator().manual_seed(0)
    grads, leaf = torch.randn(6, 3, generator=draw), torch.zeros(3, 3)
    seen, alone = torch.zeros(3), [nn.Parameter(torch.zeros(1)) for _ in range(3)]
    optimizers = [torch.optim.Adam([p], lr=1.0, betas=(0.9, 0.999), eps=1e-6) for p in alone]
    for t, g in enumerate(grads):
        for i in range(3):
            if t == 2 * i:
                leaf[:, i], seen[i] = 0, 0
        seen -= adam(g.clone(), leaf, 0.9, 0.999, 1e-6)
        for i in (i for i in range(3) if t >= 2 * i):
            alone[i].grad = g[i:i + 1].clone()
            optimizers[i].step()
    assert leaf[2].tolist() == [6, 4, 2]
    assert torch.allclose(seen, torch.cat([p.detach() for p in alone]), atol=1e-5)


def test_sm3_by_hand() -> None:
    """2 x 3, places (0, 1) and (1, 1): they share a column, whose largest sum both would
    have, but not their rows'."""
    places, rows, columns = torch.tensor([1, 4]), torch.zeros(2, 1), torch.zeros(3, 1)
    step = sm3(torch.tensor([3., 1]), places, rows, columns, 0.0)
    assert (
        torch.allclose(step, torch.tensor([1.0, 1]))
        and rows[:, 0].tolist() == [9, 1]
        and columns[:, 0].tolist() == [0, 9, 0]
    )
    step = sm3(torch.tensor([4., 2]), places, rows, columns, 0.0)
    assert (
        torch.allclose(step, torch.tensor([4 / 5, 2 / 5**0.5]))
        and rows[:, 0].tolist() == [25, 5]
        and columns[1, 0] == 25
    )


def test_it_learns_and_others_forget_what_was_dropped() -> None:
    method = Spiel(**SHORT)
    run = train(build(), method, Ema(decay=0.9, warmup=False), steps=6)
    run.run(until=1)
    first = run.row["loss"]
    run.run(until=2)
    mean = run.states["ema.1"]["param"]
    for name, layer in method.mine(run.model).items():
        assert (mean[f"{name}.spiel_deltas"]["mean"][layer.spiel_deltas == 0] == 0).all()
    run.run()
    assert run.row["loss"] < first and run.row["loss"] == run.row["loss"]


@pytest.mark.slow
def test_compiled_and_checkpointed_it_is_the_same() -> None:
    method = Spiel(density=0.1)
    model = operated("llama", method)
    moved(model)

    def gradients(run) -> dict[str, Tensor]:
        model.zero_grad()
        run(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    plain = gradients(model)
    found = [gradients(torch.compile(model, backend="aot_eager", fullgraph=True))]
    for layer in method.mine(model).values():
        layer.choosing = True
    model.train()  # places are chosen in training alone
    found.append(gradients(torch.compile(model, backend="aot_eager")))
    chosen = {n: m.chosen for n, m in method.mine(model).items()}
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    for layer in method.mine(model).values():
        layer.chosen = None
    found.append(gradients(model))
    assert all(torch.allclose(g, plain[n], atol=1e-7) for grads in found for n, g in grads.items())
    assert all(set(m.chosen.tolist()) == set(chosen[n].tolist()) for n, m in method.mine(model).items())


# ---- export ------------------------------------------------------------------------------------------------


@KINDS
@GROWTHS
def test_fold_and_delta(kind: str, growth: str, tmp_path: Path) -> None:
    method, before = Spiel(density=0.1, growth=growth), make(kind)
    model = operated(kind, method)
    assert torch.allclose(model(input_ids=IDS).logits, before(input_ids=IDS).logits, atol=1e-6)
    logits = moved(model)
    deltas.write(model, [method], 1, tmp_path, None)
    again = make(kind)
    assert deltas.put(again, tmp_path / "adapter") == method
    for one in (model, again, families.load(tmp_path, "test").eval()):
        assert torch.allclose(one(input_ids=IDS).logits, logits, atol=1e-5)
    for name, layer in method.mine(again).items():
        weight = as_linear_weight(model.get_submodule(name)) - as_linear_weight(before.get_submodule(name))
        assert int((weight != 0).sum()) <= len(layer.places) < weight.numel()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"density": 0.0}, "density must be"),
        ({"capture": 1}, "capture at least 2"),
        ({"capture": 5, "every": 5}, "below every"),
        ({"drop": 1.5}, "drop between"),
    ],
)
def test_bad_settings(given: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        settings(Spiel, given, "adapt")


@pytest.mark.parametrize(("density", "word"), [(1e-5, "raise density"), (0.999, "lower density")])
def test_a_density_that_fits_no_layer_is_refused_before_anything_changes(density: float, word: str) -> None:
    model = make("llama")
    with pytest.raises(UserError, match=word):
        Spiel(density=density).operate(model, Context())
    assert all(p.requires_grad for p in model.parameters())
