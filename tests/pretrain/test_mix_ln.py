"""Mix-LN: a Post-LN block by hand, the early blocks and not the late ones, gradients more alike, the same
parameters."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from tests.lm.architectures import IDS, make
from tests.pretrain.small import build
from trainwright import families
from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make as settings
from trainwright.pretrain.mix_ln import MixLn

HALF = MixLn(post_ln=0.5)
KINDS = pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])


def operated(kind: str, method: MixLn = HALF, **given) -> tf.PreTrainedModel:
    model = make(kind, **given)
    method.operate(model, Context())
    return model


# ---- the formula ---------------------------------------------------------------------------------


def norm(module: nn.Module, x: Tensor) -> Tensor:
    """RMSNorm or LayerNorm, from its gains."""
    if isinstance(module, nn.LayerNorm):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + module.eps).sqrt() * module.weight + module.bias
    return x / (x.square().mean(-1, keepdim=True) + module.variance_epsilon).sqrt() * module.weight


def by_hand(plain: tf.PreTrainedModel, post: int) -> tuple[list[Tensor], Tensor]:
    """Hidden states before each block, and logits, of an untouched model's parts, the first ``post`` blocks
    being Post-LN."""
    decoder, places = plain.get_decoder(), torch.arange(IDS.shape[1])[None]
    if plain.config.model_type == "gpt2":
        x, told = decoder.wte(IDS) + decoder.wpe(places), {}
        parts = [(b.ln_1, b.attn, b.ln_2, b.mlp) for b in decoder.h]
    else:
        x = decoder.embed_tokens(IDS)
        told = {"position_embeddings": decoder.rotary_emb(x, places), "attention_mask": None}
        parts = [(b.input_layernorm, b.self_attn, b.post_attention_layernorm, b.mlp) for b in decoder.layers]
    states = []
    for i, (norm_a, attention, norm_f, mlp) in enumerate(parts):
        states.append(x)
        if i < post:
            x = norm(norm_a, x + attention(x, **told)[0])
            x = norm(norm_f, x + mlp(x))
        else:
            x = x + attention(norm(norm_a, x), **told)[0]
            x = x + mlp(norm(norm_f, x))
    last = decoder.ln_f if plain.config.model_type == "gpt2" else decoder.norm
    return states, plain.lm_head(norm(last, x))


@KINDS
@pytest.mark.parametrize(("share", "post"), [(0.5, 1), (1.0, 2), (0.0, 0)])
def test_blocks_by_hand(kind: str, share: float, post: int) -> None:
    """With gains that differ, so that no norm can stand in for another; and what transformers tells of
    hidden states is right."""
    out = operated(kind, MixLn(post_ln=share))(IDS, output_hidden_states=True)
    states, logits = by_hand(make(kind), post)
    torch.testing.assert_close(out.logits, logits, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(out.hidden_states, states, strict=False):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("share", "blocks", "post"),
    [(0.25, 4, 1), (0.25, 7, 1), (0.25, 12, 3), (0.25, 24, 6), (1.0, 5, 5), (0.0, 3, 0), (0.3, 10, 3)],
)
def test_how_many_blocks_are_post_ln(share: float, blocks: int, post: int) -> None:
    assert MixLn(post_ln=share).early(blocks) == post


def test_it_is_the_first_blocks() -> None:
    model = operated("llama", MixLn(post_ln=0.5), num_hidden_layers=4)
    assert ["post_norm" in dict(b.named_children()) for b in model.model.layers] == [True, True, False, False]
    claims = MixLn(post_ln=0.25).claims(make("llama", num_hidden_layers=4))
    assert claims == {"model.layers.0.input_layernorm.*", "model.layers.0.post_attention_layernorm.*"}


# ---- gradients -----------------------------------------------------------------------------------


def spread(post_ln: float, seed: int) -> tuple[float, float]:
    """How far the gradient norms of 16 blocks' matrices are apart at the start: their deviation over their
    mean, and the mean of the deep half over that of the early half.

    Weights start so large that a branch weighs in its sum what it does in a model 800 wide, embeddings as
    the authors' do.
    """
    config = tf.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=16,
        num_attention_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        initializer_range=0.1,
    )
    model, draw = families.create(config, seed, "here"), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(std=0.632, generator=draw)
    MixLn(post_ln=post_ln).operate(model, Context())
    ids = torch.randint(64, (8, 32), generator=draw)
    model(input_ids=ids, labels=ids).loss.backward()
    norms = torch.stack(
        [
            torch.cat([p.grad.flatten() for p in b.parameters() if p.ndim > 1]).norm()
            for b in model.model.layers
        ]
    )
    return float(norms.std() / norms.mean()), float(norms[8:].mean() / norms[:8].mean())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_gradient_norms_of_blocks_are_more_alike_than_under_pre_ln(seed: int) -> None:
    """Measured: 0.17 to 0.20 and a ratio of 0.71 to 0.78 under Pre-LN, 0.08 to 0.12 and 0.80 to 0.88
    mixed."""
    pre, mixed = spread(0.0, seed), spread(0.25, seed)
    assert pre[0] > 0.15 and pre[1] < 0.8, "under Pre-LN deep blocks get the smaller gradients"
    assert mixed[0] < 0.75 * pre[0]
    assert pre[1] + 0.05 < mixed[1] < 1


# ---- the wiring ----------------------------------------------------------------------------------


@KINDS
def test_nothing_is_added_and_all_of_it_can_be_taken_out(kind: str) -> None:
    plain, model = make(kind), operated(kind)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(t, plain.state_dict()[n]) for n, t in model.state_dict().items())
    assert (model(IDS).logits - plain(IDS).logits).abs().max() > 1e-2
    HALF.fold(model)
    assert torch.equal(model(IDS).logits, plain(IDS).logits)
    assert [n for n, _ in model.named_modules()] == [n for n, _ in plain.named_modules()]
    assert not any("forward" in vars(m) for m in model.modules())


def gradients(model: tf.PreTrainedModel, compiled: bool = False) -> dict[str, Tensor]:
    call = torch.compile(model, backend="aot_eager") if compiled else model
    call(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    return {n: p.grad for n, p in model.named_parameters()}


def test_checkpointed_blocks_have_the_same_gradients_and_keep_nothing() -> None:
    plain, checkpointed = (make("llama").train() for _ in range(2))
    sharding.checkpoint_blocks(checkpointed)
    for model in (plain, checkpointed):
        HALF.operate(model, Context())
    other = gradients(checkpointed)
    assert all(torch.allclose(g, other[n], atol=1e-6) for n, g in gradients(plain).items())
    assert checkpointed.model.layers[0].post_norm.sum is None


@pytest.mark.slow
def test_compiled_it_has_the_same_gradients() -> None:
    other = gradients(operated("llama").train(), compiled=True)
    assert all(
        torch.allclose(g, other[n], atol=1e-5) for n, g in gradients(operated("llama").train()).items()
    )


@KINDS
def test_with_a_cache_it_computes_the_same(kind: str) -> None:
    model = operated(kind)
    whole = model(IDS).logits
    first = model(IDS[:, :12], use_cache=True)
    rest = model(IDS[:, 12:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(torch.cat([first.logits, rest], dim=1), whole, rtol=1e-4, atol=1e-4)


def test_a_copy_is_wired_to_its_own_norms() -> None:
    model = operated("llama")
    before, other = model(IDS).logits, copy.deepcopy(model)
    with torch.no_grad():
        for block in other.model.layers:
            block.input_layernorm.weight.mul_(2)
            block.post_attention_layernorm.weight.mul_(3)
        assert torch.equal(model(IDS).logits, before) and not torch.allclose(other(IDS).logits, before)


def test_it_trains_on_a_skeleton() -> None:
    model = families.skeleton(build().config, "here")
    HALF.operate(model, Context())
    assert model(input_ids=IDS.to("meta")).logits.shape == (2, 20, 64)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        ("gpt_neox", {}, "is no Pre-LN block: it does not compute"),
        ("granite", {"residual_multiplier": 0.5}, "does not compute"),
        ("gpt_neox", {"use_parallel_residual": False, "hidden_dropout": 0.1}, "dropout to 0"),
        ("olmo2", {}, "does not compute"),
        ("gemma2", {}, "is no Pre-LN block of two norms, an attention and a feed-forward"),
    ],
)
def test_other_blocks_are_refused(kind: str, given: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        operated(kind, **given)


def test_a_second_time_is_refused() -> None:
    with pytest.raises(UserError, match="does not compute"):
        HALF.operate(operated("llama"), Context())


def test_a_share_of_no_block_is_an_error() -> None:
    with pytest.raises(UserError, match=r"0.25 of 3 blocks is not a single one: take 0.334 or more"):
        MixLn().operate(make("llama", num_hidden_layers=3), Context())
    with pytest.raises(UserError, match="post_ln must be a share"):
        settings(MixLn, {"post_ln": 1.5}, "here")


def test_the_delta_has_no_weights(tmp_path: Path) -> None:
    HALF.save_delta(operated("llama"), tmp_path / "adapter")
    assert (tmp_path / "adapter").is_dir() and not list((tmp_path / "adapter").iterdir())
