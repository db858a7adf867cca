"""muP: what it trains is a model with the multipliers of the paper's tables, and activations are flat over
width."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from tests.lm.architectures import make
from tests.pretrain.small import Counting, Next, train
from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.families import deltas
from trainwright.optim.adamw import Adamw
from trainwright.optim.mup import Mup
from trainwright.optim.weight_decay import WeightDecay

IDS = torch.arange(32).reshape(2, 16) * 7 % 64
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 64}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def model(kind: str, **given: object) -> tf.PreTrainedModel:
    """Fresh weights; two calls give equal ones."""
    if kind == "gpt2":
        sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 64}
        config = tf.GPT2Config(**(sizes | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} | given))
    else:
        config = tf.AutoConfig.for_model(kind, **(SIZES | HEADS | {"max_position_embeddings": 64} | given))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return tf.AutoModelForCausalLM.from_config(config)


# ---- the tables ----------------------------------------------------------------------------------


def by_tables(plain: tf.PreTrainedModel, method: Mup, lr: float) -> list[dict]:
    """The paper's parametrization with multipliers in the forward pass (its tables 8 and 9: the output is
    divided by m, attention by d), on a plain model; the groups of parameters for torch's Adam."""
    gpt, m = plain.config.model_type == "gpt2", plain.config.hidden_size / method.base
    size = plain.config.hidden_size // plain.config.num_attention_heads
    decoder = plain.get_decoder()
    embeddings = [decoder.wte, decoder.wpe] if gpt else [decoder.embed_tokens]
    for module in embeddings:
        module.register_forward_hook(lambda _, given, out: out * method.embedding)
    plain.get_output_embeddings().register_forward_hook(lambda _, given, out: out / m)
    inside = []
    for block in sharding.blocks(plain):
        attention = block.attn if gpt else block.self_attn
        attention.scaling = math.sqrt(method.base_head or size) / size
        writers = (attention.c_proj, block.mlp.c_proj) if gpt else (attention.o_proj, block.mlp.down_proj)
        for module in writers:
            module.register_forward_hook(lambda _, given, out: out * method.residual)
        inside += [p for p in block.parameters() if p.ndim > 1]
    with torch.no_grad():
        for p in inside:
            p.div_(math.sqrt(m))
    rest = [p for p in plain.parameters() if not any(p is one for one in inside)]
    return [{"params": inside, "lr": lr / m}, {"params": rest, "lr": lr}]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_it_trains_the_model_of_the_tables(kind: str, tied: bool) -> None:
    """Equal logits before the first step and after each: no module computes them, weights and rates do."""
    method = Mup(base=16, base_head=4, embedding=3.0, residual=0.5)
    ours, theirs = (model(kind, tie_word_embeddings=tied).double() for _ in range(2))
    adam = torch.optim.Adam(by_tables(theirs, method, 0.02), betas=(0.9, 0.95), eps=1e-30)
    run = train(ours, Adamw(lr=0.02, weight_decay=0.0, eps=1e-30), method, steps=4)
    for step in range(5):
        torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, rtol=1e-5, atol=1e-7)
        batch = Counting().next(dict, {}, Context(step=step))
        Next().loss(theirs, batch, {}, Context()).mean().backward()
        adam.step()
        adam.zero_grad()
        run.run(until=step + 1)
    assert all(not module._forward_hooks for module in ours.modules())


def test_of_normalized_queries_the_gain_is_scaled() -> None:
    """Their weights' scale is lost in the norm."""
    run = train(model("qwen3", head_dim=16), Adamw(), Mup(base=64, base_head=4))
    attention = run.model.model.layers[0].self_attn
    assert torch.allclose(attention.q_norm.weight, torch.full((16,), 0.5))
    assert torch.equal(attention.k_norm.weight, torch.ones(16))
    same = model("qwen3", head_dim=16).model.layers[0].self_attn.q_proj.weight
    assert torch.equal(attention.q_proj.weight, same)


def test_decay_named_behind_it_is_not_scaled() -> None:
    """Against a run without decay, after one step."""
    name, shrunk = "model.layers.0.mlp.up_proj.weight", {}
    for place in ("inside", "behind"):
        decay = [Adamw(lr=0.01, weight_decay=0.5), Mup(base=16)]
        if place == "behind":
            decay = [Adamw(lr=0.01, weight_decay=0.0), Mup(base=16), WeightDecay(rate=0.5)]
        run = train(model("llama"), *decay)
        none = train(model("llama"), Adamw(lr=0.01, weight_decay=0.0), Mup(base=16))
        start = run.params[name].detach().clone()
        run.run(until=1)
        none.run(until=1)
        shrunk[place] = ((none.params[name] - run.params[name]) / start).median().item()
    assert shrunk == pytest.approx({"inside": 0.01 * 0.5 / 4, "behind": 0.01 * 0.5}, rel=1e-2)


# ---- coordinate checks ---------------------------------------------------------------------------


WIDTHS = (64, 128, 256, 512)


def of_width(kind: str, width: int) -> tf.PreTrainedModel:
    """The Llama has heads of 16, more of them the wider it is, which share keys, and a head of its own; the
    GPT-2 has four heads, which grow, and a tied head."""
    if kind == "gpt2":
        return model("gpt2", n_embd=width, initializer_range=0.1)
    heads = {"num_attention_heads": width // 16, "num_key_value_heads": width // 32}
    sizes = {"hidden_size": width, "intermediate_size": width * 3 // 2} | heads
    return model("llama", tie_word_embeddings=False, initializer_range=0.1, **sizes)


def moved(kind: str, width: int, mup: bool) -> dict[str, float]:
    """How far activations have come after ten steps from where they began: root mean squares."""
    run = train(
        of_width(kind, width),
        Adamw(lr=0.01, weight_decay=0.0),
        *([Mup(base=64, base_head=16)] if mup else []),
        steps=10,
    )
    before = seen(run.model)
    run.run()
    return {n: float((t - before[n]).square().mean().sqrt()) for n, t in seen(run.model).items()}


@torch.no_grad()
def seen(network: nn.Module) -> dict[str, Tensor]:
    """Outputs of the blocks and of their parts, and the logits."""
    out: dict[str, Tensor] = {}

    def note(name: str, module: nn.Module, given: object, got: Tensor | tuple) -> None:
        out[name] = got[0] if isinstance(got, tuple) else got

    handles = []
    for i, block in enumerate(sharding.blocks(network)):
        for name, module in (("block", block), *block.named_children()):
            if "norm" not in name and "ln_" not in name:
                handles.append(module.register_forward_hook(partial(note, f"{i} {name}")))
    logits = network(IDS).logits
    for handle in handles:
        handle.remove()
    return out | {"logits": logits}


def exponents(kind: str, mup: bool) -> dict[str, float]:
    """Of each activation's movement, the power of the width with which it grows."""
    table = [moved(kind, width, mup) for width in WIDTHS]
    x = torch.tensor(WIDTHS).log2()
    x -= x.mean()
    return {n: float(x @ torch.tensor([row[n] for row in table]).log2() / (x @ x)) for n in table[0]}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_activations_are_flat_over_width(kind: str) -> None:
    """Measured from 64 to 512 wide: powers of -0.26 to -0.04 under muP; without it 1.2 to 2.3 in the blocks
    and 0.6 to 1 of the logits."""
    flat, steep = exponents(kind, mup=True), exponents(kind, mup=False)
    assert max(abs(x) for x in flat.values()) < 0.3, flat
    assert steep.pop("logits") > 0.5 and min(steep.values()) > 1, steep


@pytest.mark.slow
def test_twice_as_wide_activations_move_as_far() -> None:
    """The same from 64 to 128, where the other parametrization doubles most of them."""
    narrow, wide = (moved("llama", width, mup=True) for width in (64, 128))
    assert all(wide[n] < 1.2 * narrow[n] for n in narrow)
    narrow, wide = (moved("llama", width, mup=False) for width in (64, 128))
    assert all(wide[n] > 1.9 * narrow[n] for n in narrow if n != "logits")


# ---- in a stage ----------------------------------------------------------------------------------


def test_a_model_to_go_on_with_keeps_its_weights(tmp_path: Path) -> None:
    trained, before = model("llama"), model("llama").state_dict()
    Mup(base=16).operate(trained, Context(inputs={"model": [tmp_path]}))
    assert all(torch.equal(t, before[n]) for n, t in trained.state_dict().items())
    state = Mup(base=16).init(trained, Context())
    assert state["shared"]["rates"]["model.layers.0.mlp.up_proj.weight"] == 0.25


def test_before_the_optimizer_it_would_do_nothing_and_is_refused() -> None:
    with pytest.raises(UserError, match=r"mup\.1 changes the step of .* name mup after the optimizer"):
        train(model("llama"), Mup(base=16), Adamw())


def test_other_layouts_are_refused() -> None:
    with pytest.raises(UserError, match="mup: which dimensions of a gemma2 grow with its width is not known"):
        train(make("gemma2"), Adamw(), Mup(base=16))


def test_the_checkpoint_is_a_plain_model(tmp_path: Path) -> None:
    run = train(model("llama", tie_word_embeddings=True), Adamw(lr=0.01), Mup(base=16, base_head=4))
    run.run()
    assert deltas.write(run.model, run.performed, 0, tmp_path, None) == []
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(IDS).logits, run.model.eval()(IDS).logits)
