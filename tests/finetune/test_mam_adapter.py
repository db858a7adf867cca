"""MAM adapter: prefix attention is the paper's gated sum, packed documents see what they would alone,
the model stays whole."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from torch import Tensor, nn

from tests.lm.architectures import IDS, make, moved
from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make as settings
from trainwright.families import deltas
from trainwright.finetune.lora import Lora
from trainwright.finetune.mam_adapter import MamAdapter, Prefix, prefix_attention
from trainwright.lm.losses import isolation_error

KINDS = pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
BOTH = MamAdapter(prefix=5, bottleneck=6)


def operated(kind: str, method: MamAdapter = BOTH, **given) -> nn.Module:
    model = make(kind, **given)
    method.operate(model, Context(seed=1))
    return model


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def prefixes(model: nn.Module) -> list[Prefix]:
    return [m for m in model.modules() if isinstance(m, Prefix)]


# ---- the two changes ---------------------------------------------------------------------------------------


def test_prefix_attention_is_the_gated_sum_by_hand() -> None:
    """(1 - lambda) attention + lambda softmax(q P_k') P_v, with lambda the prefix's share of the
    sums of exponentials."""
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 6, 4, generator=rng) for _ in range(3))
    P = torch.randn(2, 2, 3, 4, generator=rng)
    module = nn.Module()
    module.mam_prefix = lambda: P
    found, _ = prefix_attention(module, q, k, v, None, scaling=0.5)
    for head in range(2):
        for t in range(6):
            seen = [float(0.5 * q[0, head, t] @ k[0, head, j]) for j in range(t + 1)]
            front = [float(0.5 * q[0, head, t] @ P[0, head, i]) for i in range(3)]
            weights, before = torch.tensor(seen).exp(), torch.tensor(front).exp()
            gate = before.sum() / (before.sum() + weights.sum())
            own = (weights / weights.sum()) @ v[0, head, :t + 1]
            theirs = (before / before.sum()) @ P[1, head]
            assert torch.allclose(found[0, t, head], (1 - gate) * own + gate * theirs, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "gpt_neox"])
def test_a_prefix_is_a_cache_that_begins_with_it(kind: str) -> None:
    """What PEFT's prefix tuning does, with grouped heads, rotary positions and norms of keys too."""
    model, plain = operated(kind, MamAdapter(prefix=5, bottleneck=0)), make(kind)
    logits = moved(model, size=0.5)
    cache = tf.DynamicCache(config=plain.config)
    for i, prefix in enumerate(prefixes(model)):
        keys, values = (t.expand(2, -1, -1, -1) for t in prefix())
        cache.update(keys.detach(), values.detach(), i)
    given = {
        "position_ids": torch.arange(20)[None].expand(2, -1),
        "attention_mask": torch.ones(2, 25, dtype=torch.long),
    }
    assert torch.allclose(plain(input_ids=IDS, past_key_values=cache, **given).logits, logits, atol=1e-5)
    assert (logits - plain(input_ids=IDS).logits).abs().max() > 0.01


def test_peft_counts_as_many_numbers() -> None:
    theirs = peft.get_peft_model(
        make("llama"), peft.PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM")
    )
    ours = operated("llama", MamAdapter(prefix=5, bottleneck=0))
    assert sum(p.numel() for p in trained(ours).values()) == theirs.get_nb_trainable_parameters()[0]
    both = sum(p.numel() for p in trained(operated("llama")).values())
    assert both == 2 * (5 * 2 * 16 + 6 * 32 + 6 + 32 * 6 + 32)


@KINDS
def test_an_adapter_alone_starts_neutral_and_adds_by_hand(kind: str) -> None:
    method = MamAdapter(prefix=0, bottleneck=6, scale=4.0)
    model, plain = operated(kind, method), make(kind)
    assert torch.equal(model(input_ids=IDS).logits, plain(input_ids=IDS).logits)
    moved(model)
    ours, theirs = (m.get_decoder() for m in (model, plain))
    ours, theirs = (m.h[1].mlp if kind == "gpt2" else m.layers[1].mlp for m in (ours, theirs))
    a, x = ours.mam_adapter, torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    by_hand = theirs(x) + 4.0 * ((x @ a.down.T + a.down_bias).clamp(min=0) @ a.up.T + a.up_bias)
    assert torch.allclose(ours(x), by_hand, atol=1e-5)


def test_the_prefix_can_be_made_by_a_network() -> None:
    model = operated("llama", MamAdapter(prefix=5, bottleneck=0, hidden=7))
    made = prefixes(model)[0]
    inner = torch.tanh(made.vectors @ made.inner.T + made.inner_bias)
    flat = inner @ made.outer.T + made.outer_bias
    keys, values = made()
    assert torch.allclose(keys[1], flat[:, 8:16]) and torch.allclose(values[0], flat[:, 16:24])
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert len(trained(model)) == 2 * 5 and all(p.grad.abs().sum() > 0 for p in trained(model).values())


# ---- masks -------------------------------------------------------------------------------------------------


@KINDS
def test_packed_documents_see_what_they_would_alone(kind: str) -> None:
    model = operated(kind)
    moved(model, size=0.3)
    row, places = IDS[:1], torch.cat([torch.arange(12), torch.arange(8)])[None]
    packed = model(input_ids=row, position_ids=places, use_cache=False).logits
    alone = [model(input_ids=part, use_cache=False).logits for part in (row[:, :12], row[:, 12:])]
    assert torch.allclose(packed, torch.cat(alone, 1), atol=1e-5)
    assert isolation_error(model, 64, Context()) == 0.0


def test_padding_and_eager_attention_agree() -> None:
    model, eager = operated("llama"), make("llama", attn_implementation="eager")
    BOTH.operate(eager, Context(seed=1))
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[1, :6] = 0                                                            # padded on the left
    places = (mask.cumsum(1) - 1).clamp(min=0)
    logits = moved(model, size=0.3)
    moved(eager, size=0.3)
    assert torch.allclose(eager(input_ids=IDS).logits, logits, atol=1e-5)
    for one in (model, eager):
        padded = one(input_ids=IDS, attention_mask=mask, position_ids=places).logits
        assert torch.allclose(padded[1, 6:], model(input_ids=IDS[1:, 6:]).logits[0], atol=1e-5)


@KINDS
def test_text_is_generated_with_a_cache_and_without(kind: str) -> None:
    model = operated(kind)
    moved(model, size=0.3)
    ids = IDS[:, :5]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "pad_token_id": 0}
    for how in ({"do_sample": False}, {"do_sample": False, "num_beams": 3}):
        assert torch.equal(
            model.generate(**given, **how, use_cache=True), model.generate(**given, **how, use_cache=False)
        )


# ---- a model that stays whole ------------------------------------------------------------------------------


@KINDS
def test_the_artifact_is_the_model_for_us_and_the_plain_one_is_as_it_was(kind: str, tmp_path: Path) -> None:
    model, before = operated(kind), make(kind)
    logits = moved(model)
    assert deltas.write(model, [BOTH], 1, tmp_path, None) == ["mam_adapter"]
    assert torch.equal(model(input_ids=IDS).logits, before(input_ids=IDS).logits)
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
    again = families.load(tmp_path, "test").eval()
    assert torch.equal(again(input_ids=IDS).logits, logits) and deltas.carried(again) == [(BOTH, 1)]
    plain = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "backbone").eval()
    assert torch.equal(plain(input_ids=IDS).logits, before(input_ids=IDS).logits)


@pytest.mark.slow
def test_checkpointing_and_bf16_agree() -> None:
    model = operated("llama")
    exact = moved(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(model(input_ids=IDS).logits.float(), exact, atol=0.1)
    grads: list[list[Tensor]] = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model.train()(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        grads.append([p.grad for p in trained(model).values()])
    assert len(grads[0]) == 2 * 5 and all(
        torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True)
    )


def test_it_shares_a_model_with_lora() -> None:
    """The paper's other mixtures: a prefix in attention and LoRA in the feed-forward layers."""
    method, lora, model = MamAdapter(prefix=4, bottleneck=0), Lora(layers="mlp"), make("llama")
    for one in (method, lora):
        one.operate(model, Context())
    assert {n.rpartition(".")[2] for n in trained(model)} == {"vectors", "lora_A", "lora_B"}
    moved(model)
    for one in (lora, method):
        one.fold(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in make("llama").modules()]
    assert torch.isfinite(F.cross_entropy(model(input_ids=IDS).logits.flatten(0, 1), IDS.flatten()))


def test_what_takes_no_prefix_is_refused() -> None:
    with pytest.raises(UserError, match="has a prefix or an adapter already"):
        BOTH.operate(operated("llama"), Context())
    capped = operated("gemma2", attn_implementation="eager")
    with pytest.raises(UserError, match="a cap on its scores"):
        capped(input_ids=IDS)
    with pytest.raises(UserError, match="no attention and feed-forward layer that are"):
        BOTH.operate(make("opt", word_embed_proj_dim=32, ffn_dim=48), Context())


@pytest.mark.parametrize(("given", "words"), [
    ({"prefix": 0, "bottleneck": 0}, "one of the first two above 0"), ({"hidden": -1}, "must be 0 or more"),
    ({"dropout": 1.0}, "dropout must be")])
def test_bad_settings(given: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        settings(MamAdapter, given, "adapt")
