"""LoRA equals PEFT's, folds exactly, and trains nothing but its own matrices."""
from __future__ import annotations

import copy
import json
from pathlib import Path

import peft
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make
from trainwright.finetune.lora import Lora, LoraLinear

IDS = torch.arange(40).reshape(2, 20) * 7 % 64


def llama(tied: bool = False) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=tied,
        )
    ).eval()


def gpt2(tied: bool = True) -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()


MODELS = pytest.mark.parametrize("build", [llama, gpt2])


def operated(model: PreTrainedModel, method: Lora, moved: bool = True) -> PreTrainedModel:
    method.operate(model, Context(seed=1))
    torch.manual_seed(2)
    for layer in method.mine(model).values() if moved else ():
        layer.lora_B.data.normal_(std=0.1)
    return model


def in_peft(model: PreTrainedModel, method: Lora, ours: PreTrainedModel) -> peft.PeftModel:
    """PEFT's LoRA on ``model``, with our A and B."""
    theirs = peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=method.rank,
            lora_alpha=method.alpha,
            use_rslora=method.rslora,
            target_modules=list(method.mine(ours)),
            fan_in_fan_out=isinstance(model, GPT2LMHeadModel),
            task_type="CAUSAL_LM",
        ),
    ).eval()
    for name, layer in method.mine(ours).items():
        other = theirs.base_model.model.get_submodule(name)
        other.lora_A["default"].weight.data.copy_(layer.lora_A.data)
        other.lora_B["default"].weight.data.copy_(layer.lora_B.data)
    return theirs


@MODELS
@pytest.mark.parametrize(
    "method", [Lora(rank=4), Lora(rank=4, alpha=5.0, rslora=True, layers="attention"), Lora(layers="mlp")]
)
def test_equals_peft(build, method: Lora) -> None:
    ours = operated(build(), method)
    theirs = in_peft(build(), method, ours)
    a, b = ours(IDS, labels=IDS), theirs(input_ids=IDS, labels=IDS)
    assert torch.allclose(a.logits, b.logits, atol=1e-5)
    a.loss.backward()
    b.loss.backward()
    assert method.mine(ours)
    for name, layer in method.mine(ours).items():
        other = theirs.base_model.model.get_submodule(name)
        assert torch.allclose(layer.lora_A.grad, other.lora_A["default"].weight.grad, atol=1e-6)
        assert torch.allclose(layer.lora_B.grad, other.lora_B["default"].weight.grad, atol=1e-6)
        assert layer.weight.grad is None


def test_formula_by_hand() -> None:
    model = llama()
    before = copy.deepcopy(model.model.layers[0].mlp.up_proj)
    method = Lora(rank=2, alpha=6.0, layers="*.0.mlp.up_proj")
    layer = operated(model, method).model.layers[0].mlp.up_proj
    x = torch.randn(3, 5, 32)
    assert torch.allclose(layer(x), before(x) + 3.0 * (x @ layer.lora_A.T @ layer.lora_B.T), atol=1e-6)
    assert Lora(rank=16, alpha=8.0, rslora=True).scale == 2.0


@MODELS
def test_starts_as_the_model_was(build) -> None:
    model = operated(build(), Lora(), moved=False)
    assert torch.allclose(model(IDS).logits, build()(IDS).logits, atol=1e-6)


@MODELS
def test_fold_gives_the_plain_model_of_the_same_function(build) -> None:
    before, method = build(), Lora(rank=4, layers="all-linear")
    model = operated(build(), method)
    logits = model(IDS).logits
    method.fold(model)
    assert torch.allclose(model(IDS).logits, logits, atol=1e-5)
    assert model.state_dict().keys() == before.state_dict().keys()
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
    untouched = model.get_input_embeddings().weight
    assert torch.equal(untouched, before.get_input_embeddings().weight)
    assert (model.get_output_embeddings().weight is untouched) == before.config.tie_word_embeddings


def test_only_its_matrices_train_and_other_names_stay() -> None:
    before, model = llama(tied=True), operated(llama(tied=True), Lora(rank=4))
    added = {n for n, _ in model.named_parameters()} - {n for n, _ in before.named_parameters()}
    assert {n for n, _ in before.named_parameters()} < {n for n, _ in model.named_parameters()}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == added
    assert "model.layers.0.self_attn.q_proj.lora_A" in added and len(added) == 2 * 7 * 2
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 4 * 2 * sum(
        (64, 48, 48, 64, 80, 80, 80)
    )


def test_start_depends_on_seed_and_name_alone() -> None:
    one, two = operated(llama(), Lora(), moved=False), operated(llama(), Lora(layers="mlp"), moved=False)
    name = "model.layers.1.mlp.down_proj.lora_A"
    assert torch.equal(one.get_parameter(name), two.get_parameter(name))
    assert not torch.equal(
        one.get_parameter(name)[:, :32], one.get_parameter("model.layers.1.mlp.up_proj.lora_A")
    )
    assert one.get_parameter(name).abs().max() <= 48 ** -0.5


@MODELS
def test_peft_loads_the_delta(build, tmp_path: Path) -> None:
    for method in (Lora(rank=4), Lora(rank=4, layers="attention", rslora=True)):
        folder = tmp_path / method.layers
        model = operated(build(), method)
        method.save_delta(model, folder)
        loaded = peft.PeftModel.from_pretrained(build(), folder).eval()
        assert torch.allclose(loaded(input_ids=IDS).logits, model(IDS).logits, atol=1e-5)
        assert len([m for m in loaded.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]) == len(
            method.mine(model)
        )
    assert json.loads((folder / "adapter_config.json").read_text())["use_rslora"] is True


def test_two_on_different_layers_live_together_and_two_on_one_are_refused() -> None:
    first, second = Lora(layers="*.0.*.q_proj", rank=2), Lora(layers="*.1.*.q_proj", rank=3)
    model = operated(operated(llama(), first), second)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        f"model.layers.{i}.self_attn.q_proj.lora_{x}" for i in (0, 1) for x in "AB"}
    logits = model(IDS).logits
    first.fold(model)
    assert [m.settings for m in model.modules() if isinstance(m, LoraLinear)] == [second]
    second.fold(model)
    assert torch.allclose(model(IDS).logits, logits, atol=1e-5)
    assert first.claims(llama()) == {"model.layers.0.self_attn.q_proj.weight"}
    assert not Lora(layers="attention").claims(llama()) & Lora(layers="mlp").claims(llama())
    with pytest.raises(UserError, match="another adapter"):
        operated(operated(llama(), Lora(layers="attention")), Lora())


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    grads = []
    for checkpointing in (False, True):
        model = operated(llama(), Lora(dropout=0.2)).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        model(IDS, labels=IDS, use_cache=False).loss.backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert all(torch.allclose(g, grads[1][n], atol=1e-6) and g.abs().sum() > 0 for n, g in grads[0].items())


@pytest.mark.parametrize("half", [False, True])
def test_bf16(half: bool) -> None:
    """Under autocast, and in a model that is bf16 itself: the output is bf16, the gradients
    reach float32 parameters."""
    model = operated(llama(), Lora(rank=4))
    exact = model(IDS).logits
    if half:
        model = operated(llama().to(torch.bfloat16), Lora(rank=4))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not half):
        out = model(IDS, labels=IDS)
    assert torch.allclose(out.logits.float(), exact, atol=0.05)
    out.loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(
        p.dtype == torch.float32 and p.grad.dtype == torch.float32 and p.grad.isfinite().all()
        for p in trained
    )


@pytest.mark.slow
def test_compiles() -> None:
    model = operated(llama(), Lora(rank=4))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=False)
    assert torch.allclose(compiled(IDS).logits, model(IDS).logits, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 0}, "rank must be 1 or more"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"alfa": 2.0}, "did you mean 'alpha'"),
        ({"rank": 8.5}, "must be a whole number"),
    ],
)
def test_bad_settings(settings: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(Lora, settings, "adapt")
