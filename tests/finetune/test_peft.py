"""Every tuner of PEFT that lives in layers: neutral at the start, alone in training, merged
exactly, reloaded by PEFT."""

from __future__ import annotations

import builtins
import copy
from pathlib import Path
from typing import Any

import peft as library
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make
from trainwright.finetune.peft import Peft

IDS = torch.arange(40).reshape(2, 20) * 7 % 64
SMALL: dict[str, dict[str, Any]] = {  # what the defaults of PEFT are too large for
    "C3AConfig": {"block_size": 16},
    "FourierFTConfig": {"n_frequency": 50},
    "WaveFTConfig": {"n_frequency": 50},
    "MissConfig": {"r": 4},
    "ShiraConfig": {"r": 2},
    "PsoftConfig": {"r": 4},
    "RoadConfig": {"group_size": 8},
    "VBLoRAConfig": {"vector_length": 8, "num_vectors": 16},
    "TrainableTokensConfig": {"token_indices": [1, 7, 14]},
    "BOFTConfig": {"boft_block_size": 4},
}
NOT_NEUTRAL = {"C3AConfig", "FourierFTConfig", "VBLoRAConfig"}  # by their default initialization
CANNOT_MERGE = {"LilyConfig", "BeftConfig"}  # BEFT changes biases, and a Llama has none


def tuners() -> list[str]:
    names = []
    for kind in PEFT_TYPE_TO_CONFIG_MAPPING.values():
        try:
            Peft(config=kind.__name__, options=SMALL.get(kind.__name__, {}))
            names.append(kind.__name__)
        except ValueError:
            pass
    return names


def llama(tied: bool = False) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=tied,
        )
    ).eval()


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()


def move(model: PreTrainedModel) -> torch.Tensor:
    """Change what trains, as training would; the logits after it."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.05)
        return model(IDS).logits


def test_most_of_peft_is_there() -> None:
    assert len(tuners()) >= 30
    assert {
        "LoraConfig",
        "IA3Config",
        "VeraConfig",
        "OFTConfig",
        "BOFTConfig",
        "LoHaConfig",
        "LNTuningConfig",
    } <= {*tuners()}


@pytest.mark.slow
@pytest.mark.parametrize("config", tuners())
@pytest.mark.filterwarnings("ignore")
def test_a_tuner(config: str, tmp_path: Path) -> None:
    method = Peft(config=config, options=SMALL.get(config, {}))
    before, model = llama(), llama()
    start = before(IDS).logits
    if config in CANNOT_MERGE:
        with pytest.raises(UserError, match="cannot be merged"):
            method.operate(model, Context())
        return
    method.operate(model, Context(seed=1))
    assert (
        isinstance(model, LlamaForCausalLM)
        and not model.training
        and not any(m.training for m in model.modules())
    )
    assert torch.allclose(model(IDS).logits, start, atol=1e-3) == (config not in NOT_NEUTRAL)
    names = {n for n, _ in before.named_parameters()}
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained and not trained & names
    logits = move(model)
    assert not torch.allclose(logits, start, atol=1e-3)
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)

    method.save_delta(model, tmp_path)
    loaded = library.PeftModel.from_pretrained(llama(), tmp_path).eval()
    assert torch.allclose(loaded(input_ids=IDS).logits, logits, atol=1e-5)

    method.fold(model)
    assert torch.allclose(model(IDS).logits, logits, atol=1e-5)
    assert model.state_dict().keys() == before.state_dict().keys()
    assert not any(isinstance(m, BaseTunerLayer) for m in model.modules())
    assert "_peft_model" not in model.__dict__


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("LoraConfig", {"r": 4, "use_dora": True}),
        ("LoraConfig", {"r": 4, "use_rslora": True, "target_modules": ["c_attn"]}),
        ("IA3Config", {}),
        ("VeraConfig", {"r": 4, "target_modules": ["c_fc"]}),
        ("LNTuningConfig", {}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_on_gpt2(config: str, options: dict[str, Any], tmp_path: Path) -> None:
    method, model = Peft(config=config, options=options), gpt2()
    start = model(IDS).logits
    method.operate(model, Context())
    assert torch.allclose(model(IDS).logits, start, atol=1e-4)
    logits = move(model)
    method.save_delta(model, tmp_path)
    assert torch.allclose(
        library.PeftModel.from_pretrained(gpt2(), tmp_path).eval()(input_ids=IDS).logits, logits, atol=1e-4
    )
    method.fold(model)
    assert torch.allclose(model(IDS).logits, logits, atol=1e-4)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_all_linear_layers_are_the_default_and_norms_stay_norms() -> None:
    def adapted(config: str, options: dict[str, Any] | None = None) -> set[str]:
        model = llama()
        Peft(config=config, options=options or {}).operate(model, Context())
        return {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)}

    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert adapted("LoraConfig") == adapted("VeraConfig") == linear
    assert adapted("LoraConfig", {"target_modules": ["q_proj"]}) == {"q_proj"}
    assert adapted("IA3Config") == {"k_proj", "v_proj", "down_proj"}
    assert adapted("LNTuningConfig") == {"input_layernorm", "post_attention_layernorm", "norm"}


def test_start_depends_on_the_seed_alone_and_moves_no_global_randomness() -> None:
    def start(seed: int, other: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(other)
        model, state = llama(), torch.get_rng_state()
        Peft(config="LoraConfig").operate(model, Context(seed=seed))
        assert torch.equal(torch.get_rng_state(), state)
        return {n: p for n, p in model.named_parameters() if "lora_A" in n}

    one, same, other = start(1, 5), start(1, 6), start(2, 5)
    assert one and all(torch.equal(p, same[n]) and not torch.equal(p, other[n]) for n, p in one.items())


def test_a_copy_of_the_model_folds_on_its_own() -> None:
    method, model = Peft(config="LoraConfig"), llama()
    method.operate(model, Context())
    logits, twin = move(model), copy.deepcopy(model)
    method.fold(twin)
    assert torch.allclose(twin(IDS).logits, logits, atol=1e-5)
    assert any(isinstance(m, BaseTunerLayer) for m in model.modules()) and torch.equal(
        model(IDS).logits, logits
    )


def test_checkpointing_and_state_dict_need_nothing_of_peft() -> None:
    method, model, again = Peft(config="VeraConfig", options={"r": 4}), llama(), llama()
    method.operate(model, Context())
    logits = move(model)
    method.operate(again, Context())
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(IDS).logits, logits)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"config": "LoRaConfig"}, "did you mean 'LoraConfig'"),
        ({"config": "LoraConfig", "options": {"lora_alfa": 2}}, "did you mean 'lora_alpha'"),
        (
            {"config": "PrefixTuningConfig", "options": {"num_virtual_tokens": 4}},
            "changes the input of the whole model",
        ),
        ({"config": "AdaLoraConfig", "options": {"total_step": 10}}, "acts outside the layers"),
        ({"config": "LoraConfig", "options": {"init_lora_weights": "eva"}}, "acts outside the layers"),
        ({"config": "OFTConfig", "options": {"r": 4, "oft_block_size": 4}}, "refuses its options"),
        ({}, "is needed"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_bad_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(Peft, settings, "adapt")


def test_what_peft_refuses_is_told_in_one_sentence() -> None:
    with pytest.raises(UserError, match=r"cannot be put into this model.*no_such_layer"):
        Peft(config="LoraConfig", options={"target_modules": ["no_such_layer"]}).operate(llama(), Context())
    with pytest.raises(UserError, match=r"LoHaConfig cannot be put into this model.*Conv1D'> not supported"):
        Peft(config="LoHaConfig").operate(gpt2(), Context())
    model = llama()
    Peft(config="LoraConfig").operate(model, Context())
    with pytest.raises(UserError, match="carries a tuner"):
        Peft(config="IA3Config").operate(model, Context())
    with pytest.raises(UserError, match="leaves nothing to train"):
        Peft(config="LoraConfig", options={"inference_mode": True}).operate(llama(), Context())


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any) -> Any:
        if name.partition(".")[0] == "peft":
            raise ModuleNotFoundError("No module named 'peft'", name="peft")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match=r"pip install trainwright\[peft\]"):
        Peft(config="LoraConfig")
