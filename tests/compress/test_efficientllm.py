"""EfficientLLM: what a unit is worth by hand, which goes, what takes over for it, and what goes with it."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.pretrain.small import build, train
from trainwright.compress.efficientllm import Efficientllm, choose, taken_over
from trainwright.core import masks
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.lm.layers import linear_layers
from trainwright.optim.adamw import Adamw

DOWN = "model.layers.0.mlp.down_proj"


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_worth_is_the_sum_of_sizes_over_rows_and_columns() -> None:
    model, method = build("llama", width=16, layers=1), Efficientllm(layers="mlp")
    params = {n: p.data for n, p in model.named_parameters()}
    grads = {n: draw(*p.shape, seed=i) for i, (n, p) in enumerate(params.items())}
    state = method.init(model, Context())
    method.update({}, params, state, Context(policy=model, grads=grads))
    method.update({}, params, state, Context(policy=model, grads=grads))
    by_hand = torch.zeros(24)
    for name in ("gate_proj", "up_proj", "down_proj"):
        gw = grads[f"model.layers.0.mlp.{name}.weight"] * params[f"model.layers.0.mlp.{name}.weight"]
        by_hand += (gw - 0.5 * gw**2).abs().sum(0 if name == "down_proj" else 1)
    assert torch.allclose(state["shared"]["worth"][DOWN], 2 * by_hand)


def test_units_compete_by_what_each_of_their_weights_is_worth() -> None:
    """Ten units of 4 weights and two of 20: a large one goes before small ones that are worth less in all."""
    small = torch.tensor([9.0, 1.0, 2.0, 8.0, 7.0, 7.0, 7.0, 7.0, 7.0, 7.0])
    shared = {"worth": {"a": small, "b": torch.tensor([7.0, 90.0])}, "weights": {"a": 4, "b": 20},
              "left": {"a": torch.ones(10, dtype=torch.bool), "b": torch.ones(2, dtype=torch.bool)}}
    assert choose(shared, 0.05) == {"a": [1]}
    assert choose(shared, 0.3) == {"a": [1], "b": [0]}
    shared["left"]["a"][1] = False
    assert choose(shared, 0.05) == {} and choose(shared, 0.3) == {"b": [0]}
    assert choose(shared, 0.99) == {"b": [0], "a": [2, 4, 5, 6, 7, 8, 9, 3]}, "one stays in each part"


def test_the_columns_that_stay_are_the_least_squares_of_all() -> None:
    X, W = draw(50, 6), draw(3, 6, seed=1)
    X[:, 4] = X[:, 0] + 0.5 * X[:, 1]                     # a column that others can say
    stay = torch.tensor([1, 1, 1, 0, 0, 1], dtype=torch.bool)
    made = taken_over(W, X.T @ X, stay, ~stay, 1e-9)
    best = torch.linalg.lstsq(X[:, stay], X @ W.T).solution.T
    assert torch.allclose(made[:, stay], best, atol=1e-4) and not made[:, ~stay].any()
    only = torch.tensor([1, 1, 1, 1, 0, 1], dtype=torch.bool)
    assert torch.allclose(X @ taken_over(W, X.T @ X, only, ~only, 1e-9).T, X @ W.T, atol=1e-3)


@pytest.mark.parametrize("net", ["llama", "gpt2"])
def test_widths_shrink_step_by_step_to_the_share(net: str) -> None:
    model, method = build(net, width=16), Efficientllm(sparsity=0.5, end=0.75, every=3)
    kept: list[float] = []
    run = train(model, method, Adamw(lr=1e-2))
    run.run(on_step=lambda row: kept.append(row["kept"]))
    assert len(set(kept)) == 4 and kept == sorted(kept, reverse=True) and kept[0] == kept[2] == 1
    one = max(run.states["efficientllm.1"]["shared"]["weights"].values())
    total = sum(layer.weight.numel() for layer in units(model, method).values())
    assert abs(kept[-1] - 0.5) <= one / total
    assert len(run.journal) == 3
    for name, mask in masks.of(model).items():
        assert not model.get_parameter(name)[~mask].any()
        assert not run.states["adamw.1"]["param"][name]["exp_avg"][~mask].any(), "memory goes with the weight"
    zeros = sum(int((~m).sum()) for n, m in masks.of(model).items() if n.endswith("weight"))
    assert 1 - zeros / total == pytest.approx(kept[-1])


def units(model: nn.Module, method: Efficientllm) -> dict[str, nn.Module]:
    names = {n for part in method.parts(model) for n in (*part.readers, part.writer)}
    return {n: m for n, m in linear_layers(model, method.layers).items() if n in names}


def test_what_stays_makes_up_for_a_removal() -> None:
    """The layer's outputs on the step's batch move less than without the update of its columns."""
    model = build("llama", width=16, layers=1)
    method = Efficientllm(sparsity=0.3, layers="mlp", begin=0, every=1, end=1)
    run = train(model, method, Adamw(lr=1e-12), steps=2)
    down, seen = model.get_submodule(DOWN), list[Tensor]()
    before = down.weight.detach().clone()
    hook = down.register_forward_hook(lambda _, x, y: seen.append(x[0].detach().flatten(0, 1)))
    run.step()
    hook.remove()
    after = down.weight.detach()
    gone = [int(n) for n in run.states["efficientllm.1"]["shared"]["going"][0].split()[1:]]
    assert len(gone) == 7 and not after[:, gone].any()
    bare = before.clone()
    bare[:, gone] = 0
    moved, unmended = ((seen[0] @ (w - before).T).norm() for w in (after, bare))
    assert moved < 0.8 * unmended


def test_what_cannot_lose_units_is_refused() -> None:
    with pytest.raises(UserError, match="no neurons or heads"):
        Efficientllm(layers="attention").claims(build("gpt2"))
    with pytest.raises(UserError, match="no step of 12 is one at which units could go"):
        train(build("llama"), Efficientllm(begin=10, every=5), Adamw())


@pytest.mark.parametrize("line", ["", "nowhere 1", f"{DOWN} -1", f"{DOWN} 99", f"{DOWN} one"])
def test_what_a_journal_would_not_note_is_refused(line: str) -> None:
    with pytest.raises(UserError, match="which is no layer of the model with numbers of its units"):
        Efficientllm(gone=(line,)).operate(build("llama"), Context())
