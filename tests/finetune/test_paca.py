"""PaCA trains the drawn columns and nothing else, with their dense gradient, and keeps no more than
their inputs for backward."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from trainwright.core import checkpoint
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.method import Batch, Data, State
from trainwright.core.settings import make
from trainwright.families import deltas
from trainwright.finetune import paca
from trainwright.finetune.lora import Lora
from trainwright.finetune.paca import FILE, Paca, PacaLinear
from trainwright.lm.layers import as_linear_weight, linear_layers
from trainwright.optim.adamw import Adamw
from trainwright.planning.synthetic import synthetic
from trainwright.pretrain.next_token import NextToken

IDS = torch.arange(40).reshape(2, 20) * 7 % 64
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)).eval()


def qwen() -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE)).eval()


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=64,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    ).eval()


MODELS = pytest.mark.parametrize("build", [llama, qwen, gpt2])


class Same(Data):
    """One batch again and again."""

    def next(self, pull: object, state: State, ctx: Context) -> Batch:
        return synthetic(4, 16, 64, Context())


def operated(model: PreTrainedModel, method: Paca, moved: float = 0.0) -> PreTrainedModel:
    method.operate(model, Context(seed=1))
    torch.manual_seed(2)
    for layer in method.mine(model).values():
        layer.columns.data.add_(torch.randn_like(layer.columns), alpha=moved)
    return model


def trained(model: PreTrainedModel, method: Paca) -> Train:
    """Three steps, with a weight decay that would reach everything that has a gradient."""
    run = Train(model, [Same(), NextToken(), method, Adamw(lr=1e-2, weight_decay=0.5)], 3)
    run.run()
    return run


@MODELS
@pytest.mark.parametrize("alpha", [4.0, 8.0])
def test_gradient_is_the_dense_one_on_the_columns(build, alpha: float) -> None:
    method, dense = Paca(rank=4, alpha=alpha), build()
    ours = operated(build(), method)
    ours(IDS, labels=IDS).loss.backward()
    dense(IDS, labels=IDS).loss.backward()
    assert len(method.mine(ours)) == len(linear_layers(dense, "all-linear"))
    for name, layer in method.mine(ours).items():
        other = dense.get_submodule(name)
        grad = other.weight.grad if isinstance(other, nn.Linear) else other.weight.grad.T
        assert layer.columns.shape == (len(grad), 4)
        assert torch.allclose(layer.columns.grad, alpha / 4 * grad[:, layer.index], rtol=1e-4, atol=1e-7)
        assert layer.weight.grad is None


def test_a_step_by_hand() -> None:
    """On 3x3: column 2 alone is trained, s = 2, and the gradient of x goes through the trained weight."""
    holder = nn.ModuleDict({"one": nn.Linear(3, 3, bias=False)})
    weight = torch.tensor([[1., 2, 3], [4, 5, 6], [7, 8, 10]])
    holder["one"].weight.data.copy_(weight)
    method = Paca(rank=1, alpha=2.0, layers="one")
    method.operate(holder, Context(seed=0))
    layer = holder["one"]
    layer.index.fill_(2)
    layer.columns.data.copy_(torch.tensor([[1.], [0], [-1]]))
    x = torch.tensor([[1., 1, 1], [0, 2, 1]], requires_grad=True)
    y, g = layer(x), torch.tensor([[1., 0, 0], [0, 1, 1]])
    now = torch.tensor([[1., 2, 2], [4, 5, 0], [7, 8, -2]])
    assert torch.equal(y, x @ now.T)
    y.backward(g)
    assert torch.equal(x.grad, g @ now)
    assert torch.equal(layer.columns.grad, 2 * (g.T @ x.detach()[:, 2:]))
    method.fold(holder)
    assert type(holder["one"]) is nn.Linear and torch.equal(holder["one"].weight, now)


@pytest.mark.parametrize("half", [False, True])
def test_no_pass_copies_a_weight_of_its_own_type(half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The columns are in the weight while it is multiplied, and the old ones afterwards, be it
    that the product failed."""
    model = llama().to(torch.bfloat16) if half else llama()
    layer = operated(model, Paca(rank=4), moved=0.1).model.layers[0].mlp.up_proj
    old, x = layer.weight.clone(), torch.randn(3, 32, dtype=layer.weight.dtype, requires_grad=True)
    now = old.index_copy(1, layer.index, (layer.columns.detach() * 4).to(old.dtype))
    monkeypatch.setattr(paca, "copied", None)
    y = layer(x)
    y.sum().backward()
    assert torch.equal(layer.weight, old) and not torch.equal(now, old)
    assert torch.equal(y, x @ now.T) and torch.equal(x.grad, torch.ones_like(y) @ now)
    with pytest.raises(RuntimeError):
        layer(x[:, 1:])
    assert torch.equal(layer.weight, old)


@MODELS
def test_only_the_columns_move(build) -> None:
    before, method = build(), Paca(rank=3, alpha=6.0)
    run = trained(build(), method)
    index = {n: m.index.clone() for n, m in method.mine(run.model).items()}
    kept = {n: as_linear_weight(m).clone() for n, m in method.mine(run.model).items()}
    method.fold(run.model)
    assert [type(m) for m in run.model.modules()] == [type(m) for m in before.modules()]
    assert run.model.state_dict().keys() == before.state_dict().keys()
    for name, tensor in before.state_dict().items():
        module = name.removesuffix(".weight")
        if module not in index:
            assert torch.equal(run.model.state_dict()[name], tensor), name
            continue
        old, new = (
            as_linear_weight(before.get_submodule(module)),
            as_linear_weight(run.model.get_submodule(module)),
        )
        same = (old == new).all(0)
        assert (~same).nonzero()[:, 0].tolist() == index[module].tolist()
        assert torch.equal(kept[module], old), "the old columns are there until the fold"


def test_only_the_columns_have_state_and_are_trainable() -> None:
    method = Paca(rank=3)
    run = trained(llama(), method)
    columns = {f"{n}.columns": (m.out_features, 3) for n, m in method.mine(run.model).items()}
    assert {n: tuple(p.shape) for n, p in run.model.named_parameters() if p.requires_grad} == columns
    state = run.states["adamw.1"]["param"]
    assert {n: tuple(leaves["exp_avg"].shape) for n, leaves in state.items()} == columns


def test_weight_decay_pulls_the_columns_to_zero() -> None:
    """Not back to the pretrained weights, as it would with a zero-initialized addition."""
    method = Paca(rank=3, layers="*.0.mlp.up_proj")
    model = operated(llama(), method)
    (layer,) = method.mine(model).values()
    layer.columns.data.mul_(0.5)
    method.fold(model)
    old, new = llama().model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight
    assert torch.allclose(new[:, layer.index], 0.5 * old[:, layer.index])


@pytest.mark.parametrize("auto", [False, True])
def test_keeps_the_columns_inputs_and_no_more(auto: bool) -> None:
    """Beside the parameters, ``rank`` numbers a token, and no larger storage behind them."""
    layer = operated(llama(), Paca(rank=4)).model.layers[0].mlp.down_proj
    x = torch.randn(2, 10, 48, requires_grad=True)
    seen = kept_by(layer, x, auto)
    seen.pop(layer.index.untyped_storage().data_ptr())
    assert list(seen.values()) == [(4 * 20 * (2 if auto else 4), (4, 20))]


def kept_by(run: nn.Module, given: Tensor, auto: bool) -> dict[int, tuple[int, tuple[int, ...]]]:
    """Bytes and shape of what a pass keeps for backward, by storage, without the parameters of ``run``."""
    own = {p.untyped_storage().data_ptr() for p in run.parameters()}
    seen: dict[int, tuple[int, tuple[int, ...]]] = {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in own:
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes(), tuple(t.shape)
        return t

    with saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16, enabled=auto):
        out = run(given)
    (out if isinstance(out, Tensor) else out[0]).float().square().sum().backward()
    return seen


def test_keeps_much_less_than_lora() -> None:
    total = []
    for method in (Paca(rank=2), Lora(rank=2)):
        model = llama()
        method.operate(model, Context(seed=1))
        total.append(sum(size for size, _ in kept_by(model.model, IDS, auto=True).values()))
    assert total[0] < 0.65 * total[1]


@pytest.mark.slow
def test_compiles_whole_without_keeping_weights() -> None:
    """The compiler sees that both passes make the same copy of a weight; it must not keep it in between."""
    plain, model = (operated(llama(), Paca(rank=4), moved=0.1).model.layers[0].mlp for _ in range(2))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    x = torch.randn(3, 10, 32, requires_grad=True)
    kept_by(plain, x, auto=True)
    theirs, x.grad = x.grad, None
    shapes = {shape for _, shape in kept_by(compiled, x, auto=True).values()}
    assert not shapes & {(48, 32), (32, 48)} and any(4 in shape for shape in shapes), shapes
    assert torch.allclose(x.grad, theirs, rtol=0.05, atol=0.05)
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        assert one.grad is None or torch.allclose(
            one.grad, other.grad, rtol=0.05, atol=0.05 * float(one.grad.abs().max())
        )


def test_costs_the_dense_layer_and_a_thin_gradient() -> None:
    layer = operated(llama(), Paca(rank=4)).model.layers[0].mlp.down_proj
    x = torch.randn(20, 48, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() == 2 * 20 * 48 * 32 * 2 + 2 * 20 * 4 * 32
    with FlopCounterMode(display=False) as counter:
        layer(x.detach()).sum().backward()
    assert counter.get_total_flops() == 2 * 20 * 48 * 32 + 2 * 20 * 4 * 32, (
        "nobody asks for the gradient of x"
    )


@MODELS
def test_starts_as_the_model_was_to_the_bit(build) -> None:
    assert torch.equal(operated(build(), Paca(rank=8, alpha=16.0))(IDS).logits, build()(IDS).logits)


def test_every_layer_draws_its_own_columns_from_seed_and_name() -> None:
    one, two = (
        Paca(rank=8, layers=on).mine(operated(llama(), Paca(rank=8, layers=on)))
        for on in ("all-linear", "mlp")
    )
    assert all(torch.equal(m.index, one[n].index) for n, m in two.items())
    drawn = [tuple(m.index.tolist()) for m in one.values()]
    assert len(set(drawn)) == len(drawn) and all(len(set(d)) == 8 for d in drawn)
    other = llama()
    Paca(rank=8).operate(other, Context(seed=2))
    assert (
        other.model.layers[0].mlp.up_proj.index.tolist() != one["model.layers.0.mlp.up_proj"].index.tolist()
    )


def test_columns_are_drawn_uniformly() -> None:
    count, layer = torch.zeros(16), nn.ModuleDict({"one": nn.Linear(16, 1)})
    for seed in range(400):
        model = copy.deepcopy(layer)
        Paca(rank=4, layers="one").operate(model, Context(seed=seed))
        count[model["one"].index] += 1
    assert count.sum() == 1600 and (count - 100).abs().max() < 40          # 4.6 standard deviations of 8.7


@MODELS
def test_fold_and_delta_give_the_function_that_was_trained(build, tmp_path: Path) -> None:
    method = Paca(rank=4)
    model = operated(build(), method, moved=0.1)
    logits = model(IDS).logits
    assert deltas.write(model, [method], 1, tmp_path, None) == []
    again = build()
    assert not torch.allclose(again(IDS).logits, logits, atol=1e-3)
    assert deltas.put(again, tmp_path / "adapter") == method
    for one in (model, again, again.__class__.from_pretrained(tmp_path)):
        assert torch.allclose(one(IDS).logits, logits, atol=1e-5)
    assert (tmp_path / "adapter" / FILE).stat().st_size < 0.4 * (
        tmp_path / "model.safetensors"
    ).stat().st_size
    with pytest.raises(UserError, match="another model"):
        other = Paca(rank=2)
        other.load_delta(operated(build(), other), tmp_path / "adapter")


def test_two_on_different_layers_live_together_and_two_on_one_are_refused() -> None:
    first, second = Paca(layers="attention", rank=2), Paca(layers="mlp", rank=3)
    model = operated(operated(llama(), first), second, moved=0.1)
    assert sum(p.requires_grad for p in model.parameters()) == 14
    logits = model(IDS).logits
    first.fold(model)
    assert {m.settings for m in model.modules() if isinstance(m, PacaLinear)} == {second}
    second.fold(model)
    assert torch.allclose(model(IDS).logits, logits, atol=1e-5)
    with pytest.raises(UserError, match="another adapter"):
        Paca().operate(operated(llama(), Paca(layers="attention")), Context())
    with pytest.raises(UserError, match="another adapter"):
        Lora().operate(operated(llama(), Paca(layers="attention")), Context())
    with pytest.raises(UserError, match="shares its weight"):
        Paca(layers="lm_head").claims(llama())


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    grads = []
    for checkpointing in (False, True):
        model = operated(llama(), Paca(rank=4), moved=0.1).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(IDS, labels=IDS, use_cache=False).loss.backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert all(torch.allclose(g, grads[1][n], atol=1e-7) and g.abs().sum() > 0 for n, g in grads[0].items())


@pytest.mark.parametrize("half", [False, True])
def test_bf16(half: bool) -> None:
    """Under autocast, and in a model that is bf16 itself: the output is bf16, the gradients
    reach float32 parameters."""
    exact = operated(llama(), Paca(rank=4))(IDS).logits
    model = operated(llama().to(torch.bfloat16) if half else llama(), Paca(rank=4))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not half):
        out = model(IDS, labels=IDS)
    assert out.logits.dtype == torch.bfloat16 and torch.allclose(out.logits.float(), exact, atol=0.05)
    out.loss.backward()
    columns = [p for p in model.parameters() if p.requires_grad]
    assert all(
        p.dtype == torch.float32 and p.grad.dtype == torch.float32 and p.grad.isfinite().all()
        for p in columns
    )


def test_goes_on_exactly_in_a_model_of_bfloat16(tmp_path: Path) -> None:
    def run() -> Train:
        return Train(llama().to(torch.bfloat16), [Same(), NextToken(), Paca(rank=3), Adamw(lr=1e-2)], 4)

    whole, first, second = run(), run(), run()
    whole.run()
    first.run(until=2)
    path = checkpoint.save(first, tmp_path, {})
    second.build()
    checkpoint.load_into(second, path, checkpoint.read(path))
    second.run()
    for one in (whole, second):
        one.methods[2].fold(one.model)
    assert all(torch.equal(t, second.model.state_dict()[n]) for n, t in whole.model.state_dict().items())
    assert whole.row["loss"] == second.row["loss"]


def test_second_derivatives_are_refused() -> None:
    layer = operated(llama(), Paca(rank=4)).model.layers[0].mlp.up_proj
    x = torch.randn(3, 32, requires_grad=True)
    (grad,) = torch.autograd.grad(F.silu(layer(x)).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 0}, "rank must be 1 or more"),
        ({"alpha": 0.0}, "alpha must be above 0"),
        ({"alfa": 2.0}, "did you mean 'alpha'"),
    ],
)
def test_bad_settings(settings: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(Paca, settings, "adapt")


def test_a_rank_above_the_inputs_is_refused_before_anything_changes() -> None:
    model = llama()
    with pytest.raises(UserError, match="rank = 40 is more than the 32 inputs of model"):
        operated(model, Paca(rank=40))
    assert all(p.requires_grad for p in model.parameters()) and not [
        m for m in model.modules() if isinstance(m, PacaLinear)
    ]
