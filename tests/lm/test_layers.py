"""Linear layers are found by the part they play in any architecture of transformers."""
from __future__ import annotations

import copy
import re
import textwrap

import pytest
import torch
import transformers as tf
from torch import nn
from transformers.pytorch_utils import Conv1D

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Surgery
from trainwright.lm import layers as toolkit
from trainwright.lm.layers import (
    Adapter,
    as_linear_weight,
    compute_dtype,
    freeze,
    in_out,
    installed,
    linear_layers,
    pattern,
    put,
    shortest,
)

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}


def build(kind: str) -> tf.PreTrainedModel:
    options = GPT2 if kind in ("gpt2", "gptj") else SMALL
    if kind == "qwen3_moe":
        options = SMALL | {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2}
    config = tf.AutoConfig.for_model(kind, **options)
    return tf.AutoModelForCausalLM.from_config(config)


EXPECTED = {
    "llama": ({"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}),
    "qwen2": ({"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}),
    "qwen3": ({"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}),
    "gemma2": ({"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}),
    "gpt2": ({"c_attn", "c_proj"}, {"c_fc", "c_proj"}),
    "gptj": ({"q_proj", "k_proj", "v_proj", "out_proj"}, {"fc_in", "fc_out"}),
    "gpt_neox": ({"query_key_value", "dense"}, {"dense_h_to_4h", "dense_4h_to_h"}),
    "phi": ({"q_proj", "k_proj", "v_proj", "dense"}, {"fc1", "fc2"}),
    "bloom": ({"query_key_value", "dense"}, {"dense_h_to_4h", "dense_4h_to_h"}),
    "opt": ({"q_proj", "k_proj", "v_proj", "out_proj"}, {"fc1", "fc2"}),
}


def leaves(layers: dict[str, nn.Module]) -> set[str]:
    return {n.rpartition(".")[2] for n in layers}


@pytest.mark.parametrize("kind", EXPECTED)
def test_roles_of_many_architectures(kind: str) -> None:
    model = build(kind)
    attention, mlp = linear_layers(model, "attention"), linear_layers(model, "mlp")
    assert (leaves(attention), leaves(mlp)) == EXPECTED[kind]
    every = linear_layers(model, "all-linear")
    assert attention.keys() | mlp.keys() == every.keys() and not attention.keys() & mlp.keys()
    assert len(attention) == 2 * len(EXPECTED[kind][0]) and len(mlp) == 2 * len(EXPECTED[kind][1])
    assert model.get_output_embeddings() not in every.values()
    assert all(model.get_submodule(n) is m for n, m in every.items())


def test_moe_layers_are_found() -> None:
    assert {"q_proj", "o_proj"} <= leaves(linear_layers(build("qwen3_moe"), "attention"))


def test_a_subclass_of_linear_is_left_alone() -> None:
    """It need not be linear: a router, a quantized layer."""
    with pytest.raises(UserError, match="the model has lm_head, and"):
        linear_layers(build("falcon"), "attention")


def test_a_glob_chooses_by_module_name() -> None:
    model = build("llama")
    assert list(linear_layers(model, "*.1.*.[qv]_proj")) == [
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.v_proj",
    ]
    assert list(linear_layers(model, "lm_head")) == ["lm_head"]


@pytest.mark.parametrize("layers", ["*.query", "attn", "q_proj"])
def test_no_match_lists_the_candidates(layers: str) -> None:
    with pytest.raises(
        UserError,
        match=r"layers = .* matches no nn.Linear or Conv1D "
        r"layer.*model\.layers\.\*\.self_attn\.q_proj.*lm_head",
    ):
        linear_layers(build("llama"), layers)


def test_a_tied_head_is_refused() -> None:
    model = build("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    with pytest.raises(UserError, match="lm_head, which shares its weight"):
        linear_layers(model, "*")


def test_any_module_with_blocks_will_do_and_heads_in_a_list_are_no_blocks() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn, self.up = nn.Linear(4, 4), nn.Linear(4, 4)

    model = nn.ModuleDict(
        {"blocks": nn.ModuleDict({"a": Block()}), "heads": nn.ModuleList([nn.Linear(4, 2)])}
    )
    assert list(linear_layers(model["blocks"], "all-linear")) == ["a.attn", "a.up"]
    body = nn.Module()
    body.blocks, body.heads = model["blocks"], model["heads"]
    assert list(linear_layers(body, "all-linear")) == ["blocks.a.attn", "blocks.a.up"]
    assert list(linear_layers(body, "attention")) == ["blocks.a.attn"]


def test_conv1d_is_a_transposed_linear_layer() -> None:
    layer = Conv1D(6, 4)
    assert in_out(layer) == (4, 6) == in_out(nn.Linear(4, 6))
    assert (
        as_linear_weight(layer).shape == (6, 4)
        and as_linear_weight(layer).data_ptr() == layer.weight.data_ptr()
    )


@pytest.mark.parametrize("layer", [nn.Linear(4, 6), nn.Linear(4, 6, bias=False), Conv1D(6, 4)])
def test_an_adapter_computes_the_layer_and_gives_it_back(layer: nn.Module) -> None:
    x = torch.randn(2, 3, 4)
    adapter = Adapter(layer)
    assert torch.equal(adapter.linear(x), layer(x))
    assert [n for n, _ in adapter.named_parameters()] == [n for n, _ in layer.named_parameters()]
    back = adapter.plain()
    assert type(back) is type(layer) and back.weight is layer.weight and torch.equal(back(x), layer(x))


def test_freeze_leaves_what_adapters_added() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    put(model, "0", Adapter(model[0]))
    model[0].added = nn.Parameter(torch.zeros(1))
    freeze(model)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["0.added"]


def test_names_for_a_file_are_short_only_where_they_are_exact() -> None:
    llama, gpt2 = build("llama"), build("gpt2")
    assert shortest(llama, linear_layers(llama, "attention")) == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert shortest(gpt2, linear_layers(gpt2, "mlp")) == sorted(
        linear_layers(gpt2, "mlp")
    )  # attention has a c_proj as well
    assert pattern("h.11.attn.c_proj") == "h.*.attn.c_proj"


def test_a_method_finds_what_it_has_put_in_and_nothing_else() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    for name, settings in (("0", "mine"), ("2", "another's")):
        put(model, name, Adapter(model[int(name)]))
        model[int(name)].settings = settings
    assert list(installed(model, Adapter, "mine")) == ["0"] and not installed(model, Adapter, "nobody's")


def test_a_layer_computes_in_the_type_of_autocast_or_of_its_input() -> None:
    x = torch.ones(1)
    assert compute_dtype(x) == torch.float32 and compute_dtype(x.double()) == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert compute_dtype(x) == torch.bfloat16


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_example_of_an_adapter_works(kind: str) -> None:
    """It is run as the module's docstring has it: neutral at first, trained alone, and folded into the same
    function."""
    source = re.search(r"::\n\n(.*)\n\n``lm/deltas", toolkit.__doc__, re.DOTALL)
    namespace = vars(toolkit) | {"Surgery": Surgery}
    exec(textwrap.dedent(source[1]), namespace)
    model, ids = build(kind).eval(), torch.arange(12)[None]
    plain, method = copy.deepcopy(model), namespace["Scale"](layers="mlp")
    method.operate(model, Context())
    assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {n.rpartition(".")[2] for n in trained} == {"gain"} and len(trained) == len(method.claims(plain))
    for parameter in trained.values():
        parameter.data.uniform_(0.5, 1.5)
    logits = model(input_ids=ids).logits
    method.fold(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert torch.allclose(model(input_ids=ids).logits, logits, atol=1e-5) and not torch.equal(
        logits, plain(input_ids=ids).logits
    )
