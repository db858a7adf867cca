"""LST: the ladder by hand, a backbone that keeps nothing for backward, a start cut out of it, and a
model that stays whole."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from tests.lm.architectures import IDS, make, moved
from trainwright import families
from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make as settings
from trainwright.families import deltas
from trainwright.finetune.lora import Lora
from trainwright.finetune.lst import Lst
from trainwright.lm.pruned import kept_of_head, largest, small_config

KINDS = pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])


def operated(kind: str, method: Lst, **given):
    model = make(kind, **given)
    method.operate(model, Context(seed=1))
    return model


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


# ---- the ladder --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [(), (0, 2)])
def test_ladder_by_hand(layers: tuple[int, ...]) -> None:
    """s = Down_0(e); s = Block_i(mu_i s + (1 - mu_i) Down_i(h_i)), mu_i = sigmoid(a_i /
    0.1); head(Up(norm(s)))."""
    model, plain = (
        operated("llama", Lst(reduction=2, layers=layers), num_hidden_layers=3),
        make("llama", num_hidden_layers=3),
    )
    logits, ladder = moved(model), model.ladder
    # the last of them is behind the norm
    hidden = plain(input_ids=IDS, output_hidden_states=True).hidden_states
    before_norm: list[Tensor] = []
    plain.model.norm.register_forward_pre_hook(lambda m, given: before_norm.append(given[0]))
    plain(input_ids=IDS)
    seen = [*hidden[1:3], before_norm[0]]
    places = torch.arange(20)[None]
    s = ladder.downs[0](hidden[0])
    turn = ladder.side.rotary_emb(s, places)
    for j, i in enumerate(layers or (0, 1, 2)):
        mu = 1 / (1 + torch.exp(-ladder.gates[j] / 0.1))
        mixed = mu * s + (1 - mu) * ladder.downs[j + 1](seen[i])
        # not called: that would mix
        s = ladder.side.layers[j].forward(mixed, position_embeddings=turn)
    assert torch.allclose(plain.lm_head(ladder.up(ladder.side.norm(s))), logits, atol=1e-5)
    assert len(ladder.gates) == len(ladder.downs) - 1 == len(layers or (0, 1, 2))


def test_gates_start_open_half_and_only_the_side_network_trains() -> None:
    model, before = operated("gpt2", Lst(reduction=4)), make("gpt2")
    assert torch.equal(model.ladder.gates, torch.zeros(2))
    found = trained(model)
    assert found and all(n.startswith("ladder.") for n in found)
    narrow, wide, width = 8, 32, 4 * 8
    block = (
        4 * narrow
        + 3 * narrow * (narrow + 1)
        + narrow * (narrow + 1)
        + width * (narrow + 1)
        + narrow * (width + 1)
    )
    assert sum(p.numel() for p in found.values()) == 2 * block + 2 * narrow + 3 * narrow * (
        wide + 1
    ) + 2 + wide * (narrow + 1)
    assert {n for n in model.state_dict() if not n.startswith("ladder.")} == set(before.state_dict())
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in found.values())
    assert all(p.grad is None for n, p in model.named_parameters() if n not in found)


# ---- memory ------------------------------------------------------------------------------------------------


def saved_bytes(model: nn.Module, watched: list[nn.Module]) -> tuple[int, int]:
    """What a pass keeps for backward, beside parameters: all of it, and what is kept while
    a watched module runs."""
    kept: dict[int, int] = {}
    inside, within = [0], [0]
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in weights:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            within[0] += t.nbytes if inside[0] else 0
        return t

    hooks = [
        h
        for m in watched
        for h in (
            m.register_forward_pre_hook(lambda *_: inside.__setitem__(0, inside[0] + 1)),
            m.register_forward_hook(lambda *_: inside.__setitem__(0, inside[0] - 1)),
        )
    ]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model.train()(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    for hook in hooks:
        hook.remove()
    return sum(kept.values()), within[0]


@KINDS
def test_nothing_is_kept_for_backward_in_the_backbone(kind: str) -> None:
    model = operated(kind, Lst(reduction=2))
    backbone = [*sharding.blocks(model.get_decoder()), model.get_input_embeddings()]
    assert saved_bytes(model, backbone)[1] == 0
    lora = make(kind)
    Lora().operate(lora, Context())
    assert saved_bytes(lora, sharding.blocks(lora.get_decoder()))[1] > 0


def test_memory_saved_against_lora() -> None:
    """The paper: LST saves 69 % of the memory of full training where adapters and LoRA (on attention)
    save 26 %: 2.7 times more.

    Here bytes kept for backward, without the logits, which are the same for all.
    """
    sizes, given = {}, {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 6}
    for name, method in (
        ("full", None),
        ("attention", Lora(layers="attention")),
        ("all", Lora()),
        ("lst", Lst()),
    ):
        model = make("llama", **given)
        if method is not None:
            method.operate(model, Context())
        sizes[name] = saved_bytes(model, [])[0]
    less = {name: 1 - size / sizes["full"] for name, size in sizes.items()}
    assert less["lst"] > 0.69 and less["lst"] > 2 * less["attention"] > 0 and less["lst"] > 4 * less["all"]


def test_a_backbone_that_would_build_a_graph_is_an_error() -> None:
    model = operated("llama", Lst(reduction=2))
    # as helpers of checkpointing do
    model.enable_input_require_grads()
    with pytest.raises(UserError, match="nothing but the side network may be trained"):
        model(input_ids=IDS)


def test_the_backbones_dropout_is_off_while_the_side_networks_is_on() -> None:
    model = operated("gpt2", Lst(reduction=2), resid_pdrop=0.5)
    model.train()
    model.ladder.eval()
    one, two = model(input_ids=IDS).logits, model(input_ids=IDS).logits
    assert torch.equal(one, two) and not model.transformer.training
    model.train()
    assert not torch.equal(model(input_ids=IDS).logits, one)


# ---- the start ---------------------------------------------------------------------------------------------


def of_head(weights: list[Tensor], hidden: Tensor, size: int) -> Tensor:
    """What each dimension of a head is worth: |q| |k| |v|, each a mean over heads, divided by its mean."""
    product = torch.ones(size, len(hidden), dtype=torch.float64)
    for w in weights:
        mean = torch.stack([h.abs()[:, hidden] for h in w.detach().double().split(size)]).mean(0)
        product *= mean / mean.mean()
    return product.sum(1)


@pytest.mark.parametrize("pair", [1, 3])
def test_dimensions_of_a_head_are_those_of_largest_importance_and_keep_their_angles(pair: int) -> None:
    """A pair (i, i + 4) is made important in the keys of one head of one block: all blocks keep it, and its
    angles are its own, not those that a head of two dimensions would have."""
    model = make("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[8 + pair] *= 30
    method, plain = Lst(reduction=4), copy.deepcopy(model)
    method.operate(model, Context(seed=1))
    hidden, head = largest(plain.model.embed_tokens.weight.abs().sum(0), 4), torch.tensor([pair, pair + 4])
    heads = torch.cat([head + 8 * h for h in range(4)])
    for large, small in zip(plain.model.layers, model.ladder.side.layers, strict=True):
        assert torch.equal(small.self_attn.q_proj.weight, large.self_attn.q_proj.weight[heads][:, hidden])
    turns = model.ladder.side.rotary_emb.inv_freq
    assert torch.equal(turns, plain.model.rotary_emb.inv_freq[[pair]]) and turns[0] != 1.0


def test_chosen_angles_come_back_with_the_delta(tmp_path: Path) -> None:
    """Put on the backbone again without the corpus by which they were chosen."""
    model, method = make("llama"), Lst(reduction=4)
    method.operate(model, Context(seed=1))
    model.ladder.side.rotary_emb.inv_freq.copy_(torch.tensor([0.123]))
    logits = moved(model)
    deltas.write(model, [method], 1, tmp_path, None)
    again = families.load(tmp_path, "test").eval()
    assert again.ladder.side.rotary_emb.inv_freq.tolist() == pytest.approx([0.123])
    assert torch.allclose(again(input_ids=IDS).logits, logits, atol=1e-6)


def test_one_set_of_hidden_dimensions_runs_through_all_blocks() -> None:
    model, side = make("llama"), operated("llama", Lst(reduction=4)).ladder.side
    hidden = largest(model.model.embed_tokens.weight.abs().sum(0), 4)
    # of 8: the pair (i, i + 4) turns together
    every = [[getattr(b.self_attn, f"{part}_proj").weight for part in "qkv"] for b in model.model.layers]
    worth = sum(of_head(weights, hidden, 8) for weights in every)
    first = int((worth[:4] + worth[4:]).argmax())
    head = torch.tensor([first, first + 4])
    heads, groups = (torch.cat([head + 8 * h for h in range(n)]) for n in (4, 2))
    for large, small in zip(model.model.layers, side.layers, strict=True):
        assert torch.equal(small.self_attn.q_proj.weight, large.self_attn.q_proj.weight[heads][:, hidden])
        assert torch.equal(small.self_attn.v_proj.weight, large.self_attn.v_proj.weight[groups][:, hidden])
        assert torch.equal(small.self_attn.o_proj.weight, large.self_attn.o_proj.weight[hidden][:, heads])
        gate, up = large.mlp.gate_proj.weight, large.mlp.up_proj.weight
        neurons = largest((gate.abs() * up.abs())[:, hidden].sum(1), 4)
        assert torch.equal(small.mlp.gate_proj.weight, gate[neurons][:, hidden])
        assert torch.equal(small.mlp.down_proj.weight, large.mlp.down_proj.weight[hidden][:, neurons])
        assert torch.equal(small.input_layernorm.weight, large.input_layernorm.weight[hidden])
    assert torch.equal(side.norm.weight, model.model.norm.weight[hidden])


def test_evenly_spaced_pairs_have_the_angles_of_a_small_head() -> None:
    model = make("llama", head_dim=16)
    kept = kept_of_head(model.config, 4)
    assert kept.tolist() == [0, 4, 8, 12]
    fresh = type(model.model)(small_config(model.config, 4, [0]))
    assert torch.allclose(fresh.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq[kept[:2]])
    # only half of its heads turns
    half = make("gpt_neox", hidden_size=64)
    assert kept_of_head(half.config, 4).tolist() == [0, 4, 8, 12]


def test_pairs_and_the_rest_of_a_head_are_chosen_apart() -> None:
    """Of a head of 16 the first 8 dimensions turn, in pairs (i, i + 4): one pair and two of the rest stay."""
    config = make("gpt_neox", hidden_size=64).config
    worth = torch.tensor([0, 3, 9, 0, 0, 8, 1, 0, 5, 0, 0, 0, 7, 0, 6, 0], dtype=torch.float64)
    assert kept_of_head(config, 4, worth).tolist() == [1, 5, 12, 14]
    assert kept_of_head(make("gpt2").config, 4, worth[8:]).tolist() == [4, 6]


def test_fused_layers_keep_the_same_dimensions_in_each_part() -> None:
    model, side = make("gpt2"), operated("gpt2", Lst(reduction=4)).ladder.side
    hidden = largest(model.transformer.wte.weight.abs().sum(0), 4)
    chosen = []
    for large, small in zip(model.transformer.h, side.h, strict=True):
        # each block its own: nothing turns
        head = largest(of_head([large.attn.c_attn.weight.T], hidden, 8), 4)
        heads = torch.cat([head + 8 * h for h in range(4)])
        three = torch.cat([heads, heads + 32, heads + 64])
        chosen.append(head.tolist())
        assert torch.equal(small.attn.c_attn.weight, large.attn.c_attn.weight[hidden][:, three])
        assert torch.equal(small.attn.c_attn.bias, large.attn.c_attn.bias[three])
        assert torch.equal(small.attn.c_proj.weight, large.attn.c_proj.weight[heads][:, hidden])
    assert chosen != [[0, 4]] * 2


def test_without_reduction_the_side_network_is_the_backbone() -> None:
    """All dimensions kept, the ways down and up the identity, the gates closed (mu = 1): it computes
    what the backbone does."""
    for kind in ("llama", "gpt2", "qwen3"):
        model, plain = operated(kind, Lst(reduction=1)), make(kind)
        ladder = model.ladder
        with torch.no_grad():
            ladder.gates.fill_(100.0)
            for layer in (*ladder.downs, ladder.up):
                layer.weight.copy_(torch.eye(32))
                layer.bias.zero_()
        assert torch.allclose(model(input_ids=IDS).logits, plain(input_ids=IDS).logits, atol=1e-5)


# ---- a model that stays whole ------------------------------------------------------------------------------


@KINDS
def test_text_is_generated_with_the_side_networks_own_cache(kind: str) -> None:
    model = operated(kind, Lst(reduction=2))
    moved(model)
    ids = IDS[:, :5]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "pad_token_id": 0}
    for how in ({"do_sample": False}, {"do_sample": False, "num_beams": 3}):
        assert torch.equal(
            model.generate(**given, **how, use_cache=True), model.generate(**given, **how, use_cache=False)
        )


@KINDS
def test_the_artifact_is_the_model_for_us_and_no_checkpoint_for_others(kind: str, tmp_path: Path) -> None:
    method, before = Lst(reduction=2, layers=(1,)), make(kind)
    model = operated(kind, method)
    logits = moved(model)
    assert deltas.write(model, [method], 1, tmp_path, None) == ["lst"]
    # the backbone, as it was
    assert torch.equal(model(input_ids=IDS).logits, before(input_ids=IDS).logits)
    again = families.load(tmp_path, "test").eval()
    assert torch.equal(again(input_ids=IDS).logits, logits)
    assert deltas.carried(again) == [(method, 1)] and not [
        n for n in trained(again) if not n.startswith("ladder.")
    ]
    plain = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "backbone").eval()
    assert torch.equal(plain(input_ids=IDS).logits, before(input_ids=IDS).logits)
    with pytest.raises((OSError, ValueError)):
        tf.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_copy_folds_on_its_own() -> None:
    method = Lst(reduction=2)
    model = operated("llama", method)
    logits, twin = moved(model), copy.deepcopy(model)
    method.fold(twin)
    assert torch.equal(twin(input_ids=IDS).logits, make("llama")(input_ids=IDS).logits)
    assert torch.equal(model(input_ids=IDS).logits, logits)


def test_checkpointing_and_bf16_agree() -> None:
    model = operated("llama", Lst(reduction=2))
    exact = moved(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(model(input_ids=IDS).logits.float(), exact, atol=0.1)
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            sharding.checkpoint_blocks(model)
        model.zero_grad()
        model.train()(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        grads.append([p.grad for p in trained(model).values()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"reduction": 5}, "does not divide the model's hidden_size of 32"),
        ({"layers": (2,)}, "there are 0 to 1"),
        ({"reduction": 8}, "cuts heads of 8 dimensions unevenly"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        operated("llama", Lst(**given))


@pytest.mark.parametrize("start", ["pruned", "random"])
def test_a_model_with_an_encoder_is_refused(start: str) -> None:
    config = tf.T5Config(vocab_size=64, d_model=16, d_ff=32, d_kv=4, num_heads=4, num_layers=2)
    with pytest.raises(UserError, match="a model with an encoder needs two side networks"):
        Lst(reduction=2, start=start).operate(families.create(config, 0, "here"), Context(seed=0))


def test_an_architecture_that_cannot_be_cut_starts_at_random() -> None:
    experts = {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2}
    with pytest.raises(UserError, match=r"experts.*set start = \"random\""):
        operated("qwen3_moe", Lst(reduction=2), **experts)
    assert (
        operated("qwen3_moe", Lst(reduction=2, start="random"), **experts)(input_ids=IDS)
        .logits.isfinite()
        .all()
    )


@pytest.mark.parametrize(("given", "words"), [
    ({"reduction": 0}, "reduction must be 1 or more"), ({"dropout": 1.0}, "dropout must be"),
    ({"start": "fisher"}, "must be one of")])
def test_bad_settings(given: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        settings(Lst, given, "adapt")
