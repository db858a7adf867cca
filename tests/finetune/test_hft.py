"""HFT trains half of each kind of matrix, leaves the other half alone to the bit, and does not pay for it."""
from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
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

from trainwright.core.claims import check_claims
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.method import Batch, Data, State
from trainwright.core.settings import make
from trainwright.finetune.hft import Hft
from trainwright.finetune.lora import Lora
from trainwright.optim.adamw import Adamw
from trainwright.optim.ema import Ema
from trainwright.planning.synthetic import synthetic
from trainwright.pretrain.next_token import NextToken

IDS = torch.arange(40).reshape(2, 20) * 7 % 64
LAYERS = 4
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


def qwen() -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True))


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=LAYERS, n_head=2, n_positions=64))


class Same(Data):
    """One batch again and again."""

    def next(self, pull: object, state: State, ctx: Context) -> Batch:
        return synthetic(4, 16, 64, Context())


def halved(model: PreTrainedModel, method: Hft | None = None, seed: int = 1) -> PreTrainedModel:
    (method or Hft()).operate(model, Context(seed=seed))
    return model


def drawn(model: PreTrainedModel) -> set[str]:
    return {n for n, p in model.named_parameters() if p.requires_grad}


def stage(method: Hft, steps: int, *more: object, model: PreTrainedModel | None = None) -> Train:
    """A stage whose weight decay would reach everything that has a gradient."""
    run = Train(
        model or llama(),
        [Same(), NextToken(), Adamw(lr=1e-2, weight_decay=0.5, decay_1d=True), method, *more],
        steps,
        ctx=Context(seed=1),
    )
    run.build()
    return run


@pytest.mark.parametrize("build", [llama, qwen])
def test_half_of_each_category_of_each_block(build) -> None:
    for seed in range(5):
        model = halved(build(), seed=seed)
        feed_forward = []
        for block in model.model.layers:
            on = {n.split(".")[-2] for n, p in block.named_parameters() if p.requires_grad}
            assert len(on & {"q_proj", "k_proj", "v_proj", "o_proj"}) == 2
            assert len(on & {"input_layernorm", "post_attention_layernorm"}) == 1
            feed_forward.append(len(on & {"gate_proj", "up_proj", "down_proj"}))
        assert sorted(feed_forward) == [1, 1, 2, 2]
        matrices = Counter(p.requires_grad for p in model.model.layers.parameters() if p.ndim > 1)
        assert matrices == {True: 7 * LAYERS // 2, False: 7 * LAYERS // 2}
        assert {"model.embed_tokens.weight", "model.norm.weight"} < drawn(model)


def test_gpt2_has_two_of_each_and_biases_go_with_their_matrix() -> None:
    model = halved(gpt2())
    for block in model.transformer.h:
        for pair in (
            (block.attn.c_attn, block.attn.c_proj),
            (block.mlp.c_fc, block.mlp.c_proj),
            (block.ln_1, block.ln_2),
        ):
            assert sorted(m.weight.requires_grad for m in pair) == [False, True]
            assert all(m.weight.requires_grad == m.bias.requires_grad for m in pair)


def test_which_half_is_random() -> None:
    """Over many draws each matrix is trained about half of the time, and not always with the same others."""
    count: Counter[str] = Counter()
    sets, model = set(), llama()
    for seed in range(200):
        on = drawn(halved(model, seed=seed))
        count.update(on)
        sets.add(frozenset(on))
    inside = [c for n, c in count.items() if ".layers." in n]
    assert len(sets) == 200 and len(inside) == 9 * LAYERS and min(inside) > 70 and max(inside) < 130


def test_outside_can_be_frozen_too() -> None:
    model = halved(llama(), Hft(outside=False))
    assert all(".layers." in n for n in drawn(model)) and drawn(model) < drawn(halved(llama()))


def test_the_frozen_half_stays_to_the_bit() -> None:
    before = llama().state_dict()
    run = stage(Hft(), 3)
    on = drawn(run.model)
    run.run()
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in on), name
    assert run.states["adamw.1"]["param"].keys() == on, "no state for what is frozen"


def flops(model: PreTrainedModel) -> int:
    with FlopCounterMode(display=False) as counter:
        model(IDS, labels=IDS, use_cache=False).loss.backward()
    return counter.get_total_flops()


def test_backward_skips_what_is_frozen() -> None:
    """The FLOPs saved are exactly those of the frozen matrices' gradients: 2 a weight and token."""
    model = halved(llama())
    frozen = sum(p.numel() for p in model.parameters() if p.ndim > 1 and not p.requires_grad)
    assert frozen and flops(llama()) - flops(model) == 2 * IDS.numel() * frozen


def draws_of(run: Train) -> list[set[str]]:
    out: list[set[str]] = []
    run.run(on_step=lambda row: out.append(drawn(run.model)))
    return out


@pytest.mark.slow
def test_a_draw_is_fixed_in_a_round_and_made_anew_for_the_next() -> None:
    draws = draws_of(stage(Hft(rounds=3), 8))
    # of 8 steps: ceil(8 / 3), ceil(16 / 3)
    starts = [0, 3, 6]
    for i, at in enumerate(starts):
        assert all(d == draws[at] for d in draws[at:[*starts, 8][i + 1]])
    assert len({frozenset(d) for d in draws}) == 3
    alone = [draws_of(stage(Hft(round=i), 1))[0] for i in (1, 2, 3)]
    assert [draws[at] for at in starts] == alone, "three rounds of a stage draw as three stages do"


def test_a_round_begins_with_fresh_state_for_all_that_it_trains() -> None:
    run = stage(Hft(rounds=2), 6, Ema(decay=0.5))
    run.run(until=3)
    first = drawn(run.model)
    run.run(until=4)
    second, adam, mean = drawn(run.model), run.states["adamw.1"]["param"], run.states["ema.1"]["param"]
    assert second - first and adam.keys() == second == mean.keys()
    assert all(leaves["step"] == 1 for leaves in adam.values())
    with run.viewed():
        assert all(torch.equal(run.params[n], leaves["mean"]) for n, leaves in mean.items())
    assert any(not torch.equal(run.params[n], leaves["mean"]) for n, leaves in mean.items())


def test_what_was_learned_in_a_round_is_frozen_in_the_next() -> None:
    run = stage(Hft(rounds=2), 4)
    run.run(until=2)
    first, learned = drawn(run.model), {n: p.detach().clone() for n, p in run.params.items()}
    run.run()
    gone = first - drawn(run.model)
    assert gone and all(torch.equal(run.params[n], learned[n]) for n in gone)
    assert all(not torch.equal(p, learned[n]) for n, p in run.params.items() if p.requires_grad)


@pytest.mark.slow
def test_compiled_code_follows_a_new_draw() -> None:
    model = llama()
    layer = model.model.layers[0].mlp
    compiled, draws = torch.compile(layer, backend="aot_eager", dynamic=False), set[frozenset[str]]()
    for number in range(1, 5):
        halved(model, Hft(round=number))
        model.zero_grad(set_to_none=True)
        compiled(torch.ones(2, 3, 16)).square().sum().backward()
        draws.add(frozenset(drawn(layer)))
        assert {n for n, p in layer.named_parameters() if p.grad is not None} == drawn(layer)
    assert len(draws) > 1


def test_fold_thaws_and_changes_no_weight() -> None:
    model, method = llama(), Hft()
    before: dict[str, Tensor] = {n: t.clone() for n, t in model.state_dict().items()}
    halved(model, method)
    method.fold(model)
    assert len(drawn(model)) == len(before) and all(
        torch.equal(t, before[n]) for n, t in model.state_dict().items()
    )


def test_refused_beside_what_freezes_the_model_itself() -> None:
    with pytest.raises(UserError, match=r"hft.1 and lora.1 both claim model\.layers"):
        check_claims([Lora(), Hft()], llama())


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="hft: a Linear has no repeated blocks"):
        Hft().claims(torch.nn.Linear(3, 3))


def test_more_rounds_than_steps_are_refused() -> None:
    with pytest.raises(UserError, match="3 rounds do not fit into the stage's 2 steps"):
        stage(Hft(rounds=3), 2).run()


@pytest.mark.parametrize("settings", [{"round": 0}, {"rounds": 0}])
def test_bad_settings(settings: dict) -> None:
    with pytest.raises(UserError, match="must be 1 or more, not 0"):
        make(Hft, settings, "adapt")
