"""SaRA trains the smallest weights in place, its nuclear norm reaches them, and at half-time
those that grew are done."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.lm.architectures import IDS, make, moved
from tests.pretrain.small import build, train
from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make as settings
from trainwright.families import deltas
from trainwright.finetune.sara import Sara, SaraLinear, polar, smallest
from trainwright.lm.layers import as_linear_weight, linear_layers
from trainwright.optim.adamw import Adamw

KINDS = pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
ADAM = Adamw(lr=1e-2, weight_decay=0.0)


def operated(kind: str, method: Sara):
    model = make(kind)
    method.operate(model, Context())
    return model


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """What the layers compute with, [out, in]."""
    return {n: m.whole() if isinstance(m, SaraLinear) else as_linear_weight(m).detach().clone()
            for n, m in model.named_modules() if isinstance(m, SaraLinear) or n in PLAIN}


PLAIN = set(linear_layers(make("llama"), "all-linear")) | set(linear_layers(make("gpt2"), "all-linear"))


# ---- what is trained ---------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("share", [0.1, 0.2])
def test_the_smallest_of_all_layers_together_are_trained_with_their_dense_gradient(
    kind: str, share: float
) -> None:
    method, dense = Sara(share=share), make(kind)
    model = operated(kind, method)
    every = torch.cat([as_linear_weight(m).reshape(-1) for m in linear_layers(dense, "all-linear").values()])
    limit = every.abs().sort().values[int(share * len(every))]
    model(input_ids=IDS, labels=IDS).loss.backward()
    dense(input_ids=IDS, labels=IDS).loss.backward()
    trained = 0
    for name, layer in method.mine(model).items():
        other = dense.get_submodule(name)
        small = as_linear_weight(other).abs() < limit
        assert torch.equal(layer.places.long(), small.reshape(-1).nonzero()[:, 0])
        assert (
            torch.equal(layer.sara_values, as_linear_weight(other)[small])
            and not as_linear_weight(layer)[small].any()
        )
        grad = other.weight.grad if isinstance(other, nn.Linear) else other.weight.grad.T
        assert (
            torch.allclose(layer.sara_values.grad, grad[small], rtol=1e-4, atol=1e-7)
            and layer.weight.grad is None
        )
        trained += len(layer.places)
    assert trained == int(share * len(every)) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_limit_is_found_by_halving_and_may_be_given() -> None:
    parts = [torch.tensor([3., -1, 0.5]), torch.tensor([[2., -0.25]])]
    assert 1 < smallest(parts, 0.6) <= 2 and 0.25 < smallest(parts, 0.2) <= 0.5
    model = nn.ModuleDict({"one": nn.Linear(3, 2, bias=False)})
    model["one"].weight.data.copy_(torch.tensor([[0.2, -0.1, 0.3], [-0.2, 0.05, 1]]))
    Sara(threshold=0.2, layers="one").operate(model, Context())
    assert model["one"].places.tolist() == [1, 4]                                            # strictly below
    assert torch.equal(model["one"].sara_values, torch.tensor([-0.1, 0.05]))                 # signs stay


def test_gradients_and_memory_of_the_optimizer_have_the_size_of_the_mask() -> None:
    run = train(build(), Sara(share=0.1), ADAM, steps=4)
    run.run(until=1)
    count = sum(len(m.places) for m in run.methods[2].mine(run.model).values())
    grads = run.gradients([run.pull()])
    assert sum(g.numel() for g in grads.values()) == count
    assert (
        sum(t.numel() for leaf in run.states["adamw.1"]["param"].values() for t in leaf.values() if t.ndim)
        == 2 * count
    )


# ---- the nuclear norm --------------------------------------------------------------------------------------


def test_gradient_of_the_nuclear_norm_is_autograds() -> None:
    method = Sara(share=0.3)
    for layer in list(method.mine(operated("gpt2", method)).values())[:3]:
        values = layer.sara_values.detach().clone().requires_grad_()
        torch.linalg.matrix_norm(layer.dense(values), ord="nuc").backward()
        assert torch.allclose(polar(layer, values), values.grad, atol=1e-4)


def test_terms_of_no_size_are_left_out() -> None:
    model = nn.ModuleDict({"one": nn.Linear(3, 3, bias=False)})
    model["one"].weight.data.copy_(torch.tensor([[4., 0.5, 0], [0, 4, 0], [0, 0, 4]]))
    Sara(threshold=1.0, layers="one").operate(model, Context())
    layer = model["one"]
    # rank one: u v' alone
    assert torch.allclose(polar(layer, layer.sara_values), torch.tensor([1., 0, 0, 0, 0, 0]))
    assert not polar(layer, torch.zeros(6)).any()


def test_the_penalty_reaches_the_weights_one_matrix_a_step() -> None:
    """A plain step of size 1 with the penalty ends at W - nuclear U V' beside one without
    it, in one layer a step."""
    runs = []
    for nuclear in (0.0, 0.5):
        run = train(build(), Sara(nuclear=nuclear, progress=1.0), Adamw(lr=0.0, weight_decay=0.0), steps=3)
        link, (_, method) = run.chain.links[0], run.named_methods[2]
        # before the optimizer
        assert link[1] is method
        runs.append(run)
    updates = {n: torch.zeros_like(p) for n, p in runs[1].params.items() if p.requires_grad}
    touched = []
    for step in range(6):
        runs[1].ctx.step = step
        out = runs[1].methods[2].update(updates, runs[1].params, runs[1].states["sara.1"], runs[1].ctx)
        hit = [n for n, u in out.items() if u.any()]
        assert len(hit) == 1
        layer = runs[1].model.get_submodule(hit[0].rpartition(".")[0])
        assert torch.allclose(out[hit[0]], 0.5 * polar(layer, layer.sara_values.detach()))
        touched += hit
    assert len(set(touched)) > 1
    out = runs[0].methods[2].update(updates, runs[0].params, runs[0].states["sara.1"], runs[0].ctx)
    assert not any(u.any() for u in out.values())


def test_a_large_penalty_lowers_the_norm() -> None:
    norms = []
    for nuclear in (0.0, 10.0):
        method = Sara(share=0.5, nuclear=nuclear, progress=1.0, layers="*.0.mlp.up_proj")
        run = train(build(), method, ADAM, steps=5)
        run.run()
        layer, = method.mine(run.model).values()
        norms.append(float(torch.linalg.matrix_norm(layer.dense(layer.sara_values.detach()), ord="nuc")))
    assert norms[1] < 0.8 * norms[0]


# ---- half-time ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_grew_is_done_and_the_rest_goes_on(family: str) -> None:
    method = Sara(share=0.2, progress=0.5)
    run = train(build(family), method, ADAM, steps=6)
    first = weights(run.model)
    run.run(until=3)
    middle = weights(run.model)
    run.run()
    last, layers = weights(run.model), method.mine(run.model)
    ended = going = 0
    for name, layer in layers.items():
        done = run.states["sara.1"]["param"][f"{name}.sara_values"]["done"]
        at = layer.places.long()
        grew = middle[name].reshape(-1)[at].abs() >= layer.limit
        assert torch.equal(done, grew)
        assert torch.equal(last[name].reshape(-1)[at[done]], middle[name].reshape(-1)[at[done]])
        going += int((last[name].reshape(-1)[at[~done]] != middle[name].reshape(-1)[at[~done]]).sum())
        others = torch.ones(first[name].numel(), dtype=torch.bool).index_fill(0, at, False)
        assert torch.equal(last[name].reshape(-1)[others], first[name].reshape(-1)[others])
        moments = run.states["adamw.1"]["param"][f"{name}.sara_values"]
        assert not moments["exp_avg"][done].any() and not moments["exp_avg_sq"][done].any()
        ended += int(done.sum())
    assert ended > 20 and going > 100


# ---- export ------------------------------------------------------------------------------------------------


@KINDS
def test_fold_and_delta(kind: str, tmp_path: Path) -> None:
    method, before = Sara(), make(kind)
    model = operated(kind, method)
    assert torch.equal(model(input_ids=IDS).logits, before(input_ids=IDS).logits)
    logits = moved(model)
    # some are done: what they learned is in the weight
    for name, layer in method.mine(model).items():
        layer.keep(
            model.get_parameter(f"{name}.weight"), layer.sara_values.detach() * (layer.sara_values > 0.1)
        )
        layer.sara_values.data[layer.sara_values > 0.1] = 0
    deltas.write(model, [method], 0, tmp_path, None)
    again = make(kind)
    assert deltas.put(again, tmp_path / "adapter") == method
    for one in (model, again, families.load(tmp_path, "test").eval()):
        assert torch.allclose(one(input_ids=IDS).logits, logits, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"share": 0.0}, "share must be"),
        ({"nuclear": -1.0}, "must be 0 or more"),
        ({"progress": 2.0}, "progress 0 to 1"),
    ],
)
def test_bad_settings(given: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        settings(Sara, given, "adapt")


def test_a_threshold_below_all_weights_is_refused() -> None:
    model = make("llama")
    with pytest.raises(UserError, match="no weight of"):
        Sara(threshold=1e-30).operate(model, Context())
    assert all(p.requires_grad for p in model.parameters())


def test_what_is_trained_decays_only_as_one_dimension() -> None:
    """The entries are a vector: AdamW's decay reaches them with ``decay_1d`` alone, and then as
    p - lr decay p."""
    runs = {}
    for decay, one in ((0.0, False), (0.5, False), (0.5, True)):
        optimizer = Adamw(lr=1e-2, weight_decay=decay, decay_1d=one)
        run = train(build(), Sara(nuclear=0.0, progress=1.0), optimizer, steps=3)
        before = {n: p.detach().clone() for n, p in run.params.items() if p.requires_grad}
        run.run(until=1)
        runs[decay, one] = {n: run.params[n].detach() for n in before}
    assert before and all(p.ndim == 1 for p in before.values())
    for name, p in before.items():
        assert torch.equal(runs[0.5, False][name], runs[0.0, False][name])
        expected = runs[0.0, False][name] - 1e-2 * 0.5 * p
        assert torch.allclose(runs[0.5, True][name], expected, atol=1e-7) and p.any()
