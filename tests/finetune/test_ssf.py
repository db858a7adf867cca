"""SSF scales and shifts behind every operation, starts as published, and is folded in without a trace."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers as tf

from tests.lm.architectures import IDS, make, moved
from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make as settings
from trainwright.families import deltas
from trainwright.finetune.lora import Lora
from trainwright.finetune.ssf import ScaleShift, Ssf, offset

FOLDED = [("llama", {}), ("gpt2", {}), ("qwen2", {"shift": "biased"}), ("qwen3", {"layers": "attention"}),
          ("mistral", {"shift": "none"}), ("gemma2", {"layers": "attention"}), ("gpt_neox", {}),
          ("llama", {"embedding": True, "norms": False, "layers": "*.1.mlp.*"})]


def operated(kind: str, method: Ssf, **given):
    model = make(kind, **given)
    method.operate(model, Context(seed=1))
    return model


def trained(model) -> dict[str, torch.nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("kind", "given"), FOLDED)
def test_transformers_alone_reads_the_same_function(kind: str, given: dict, tmp_path: Path) -> None:
    method, before = Ssf(**given), make(kind)
    model = operated(kind, method)
    logits = moved(model)
    assert (logits - before(input_ids=IDS).logits).abs().max() > 0.01
    deltas.write(model, [method], 1, tmp_path, None)
    plain = tf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.allclose(plain(input_ids=IDS).logits, logits, atol=1e-6)
    assert [type(m) for m in plain.modules()] == [type(m) for m in before.modules()]
    again = make(kind)
    deltas.put(again, tmp_path / "adapter")
    assert torch.allclose(again(input_ids=IDS).logits, logits, atol=1e-6)


def test_formula_by_hand_in_every_place_of_a_block() -> None:
    """The pair of the first feed-forward layer acts before the activation: behind it, it
    could not be folded in."""
    model, plain = operated("gpt2", Ssf()), make("gpt2").transformer.h[0]
    block, x = model.transformer.h[0], torch.randn(2, 5, 32)

    def place(module, y):
        return y * module.ssf_scale + module.ssf_shift
    with torch.no_grad():
        moved(model)
        inner = place(block.mlp.c_fc, plain.mlp.c_fc(place(block.ln_2, plain.ln_2(x))))
        expected = place(block.mlp.c_proj, plain.mlp.c_proj(plain.mlp.act(inner)))
        assert torch.allclose(block.mlp(block.ln_2(x)), expected, atol=1e-5)
    assert block.attn.c_attn.ssf_scale.shape == (96,) and block.mlp.c_fc.ssf_shift.shape == (128,)


def test_counts_of_the_papers_shape() -> None:
    """ViT-B/16 in the paper: 0.2 M without the head. GPT-2's blocks are of that shape, its embedding
    stands for the patches'."""
    per_block = 2 * (768 + 3 * 768 + 768 + 768 + 4 * 768 + 768)
    model = tf.GPT2LMHeadModel(
        tf.GPT2Config(vocab_size=8, n_positions=8, n_layer=1, tie_word_embeddings=False)
    )
    Ssf(embedding=True).operate(model, Context())
    assert sum(p.numel() for p in trained(model).values()) == per_block + 2 * 2 * 768
    assert 12 * per_block + 2 * 2 * 768 == 205_824


def test_start_is_as_published() -> None:
    """gamma ~ N(1, 0.02^2), beta ~ N(0, 0.02^2): near the model that was, and not it."""
    model = operated("gpt2", Ssf(), n_embd=256)
    for part, mean in (("scale", 1.0), ("shift", 0.0)):
        drawn = torch.cat([p for n, p in trained(model).items() if n.endswith(part)])
        assert abs(drawn.mean() - mean) < 4 * 0.02 / len(drawn) ** 0.5 and abs(drawn.std() - 0.02) < 0.001
    before = make("gpt2", n_embd=256)(input_ids=IDS).logits
    off = (model(input_ids=IDS).logits - before).norm() / before.norm()
    assert 0.005 < off < 0.2
    exact = operated("gpt2", Ssf(std=0.0), n_embd=256)
    assert torch.allclose(exact(input_ids=IDS).logits, before, atol=1e-5)


def test_only_pairs_train_each_place_has_its_own_and_none_decays() -> None:
    model = operated("llama", Ssf())
    found = trained(model)
    assert {n.rpartition(".")[2] for n in found} == {"ssf_scale", "ssf_shift"}
    assert (
        sum(n.endswith("scale") for n in found) == 2 * (7 + 2) + 1
        and sum(n.endswith("shift") for n in found) == 2 * 7
    )
    assert len({id(p) for p in found.values()}) == len(found) and all(p.ndim == 1 for p in found.values())
    assert set(make("llama").state_dict()) < set(model.state_dict())
    start = operated("llama", Ssf(layers="attention", norms=False))
    # by name, whatever else is a place
    assert all(torch.equal(p, found[n]) for n, p in trained(start).items())


def test_gradients_are_those_of_the_formula() -> None:
    y, scale, shift = (
        torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 3, 5), (5,), (5,))
    )
    weight = torch.randn(2, 3, 5)
    ours = torch.autograd.grad(
        (ScaleShift.apply(y.float(), scale.float(), shift.float()) * weight).sum(), (y, scale, shift)
    )
    theirs = torch.autograd.grad(((y * scale + shift) * weight).sum(), (y, scale, shift))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))


def test_bf16_does_not_round_gamma() -> None:
    """A gamma of 1.003 is 1 in bfloat16: the product is taken in float32."""
    y = torch.full((1, 1, 4), 384.0, dtype=torch.bfloat16, requires_grad=True)
    out = ScaleShift.apply(y, torch.full((4,), 1.003), None)
    assert out.dtype == torch.bfloat16 and (out == 386).all() and torch.tensor(1.003).bfloat16() == 1
    model = operated("llama", Ssf())
    exact = model(input_ids=IDS).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(input_ids=IDS, labels=IDS)
    assert torch.allclose(low.logits.float(), exact, atol=0.05)
    low.loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in trained(model).values())


def test_llama_gets_biases_by_its_config_and_zeros_where_no_place_is(tmp_path: Path) -> None:
    method = Ssf(layers="*.0.*.q_proj", norms=False)
    model = operated("llama", method)
    moved(model)
    shift = model.model.layers[0].self_attn.q_proj.ssf_shift.detach()
    method.fold(model)
    assert model.config.attention_bias and not model.config.mlp_bias
    assert torch.equal(model.model.layers[0].self_attn.q_proj.bias, shift)
    others = [p for n, p in model.named_parameters() if n.endswith("bias") and "0.self_attn.q_proj" not in n]
    assert len(others) == 7 and not any(p.any() for p in others)


def test_a_shift_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"o_proj.*have no bias, and no setting of Qwen2Config.*shift = \"biased\""
    ):
        Ssf().claims(make("qwen2"))
    model = operated("qwen2", Ssf(shift="biased"))
    assert {n.split(".")[-2] for n in trained(model) if n.endswith("shift")} == {"q_proj", "k_proj", "v_proj"}
    assert sum(n.endswith("scale") for n in trained(model)) == 2 * 9 + 1


def test_a_norm_kept_as_distance_from_one_is_folded_so() -> None:
    assert {offset(m) for m in make("gemma2").modules() if "Norm" in type(m).__name__} == {1.0}
    assert {offset(m) for m in make("gpt2").modules() if "Norm" in type(m).__name__} == {0.0}

    class SquaredNorm(torch.nn.LayerNorm):
        def forward(self, x):
            return F.layer_norm(x, self.normalized_shape) * self.weight**2
    with pytest.raises(UserError, match="SquaredNorm is not linear in its weight"):
        offset(SquaredNorm(8))


def test_a_tied_embedding_is_refused() -> None:
    with pytest.raises(UserError, match="tied to the output head"):
        Ssf(embedding=True).claims(make("gpt2"))


def test_it_shares_a_model_with_lora_on_other_layers(tmp_path: Path) -> None:
    ssf, lora, model = Ssf(layers="attention"), Lora(layers="mlp"), make("llama")
    for method in (ssf, lora):
        method.operate(model, Context())
    assert {n.rpartition(".")[2] for n in trained(model)} == {"ssf_scale", "ssf_shift", "lora_A", "lora_B"}
    assert "model.norm.ssf_scale" in trained(model)
    logits = moved(model)
    deltas.write(model, [ssf, lora], 0, tmp_path, None)
    assert torch.allclose(families.load(tmp_path, "test").eval()(input_ids=IDS).logits, logits, atol=1e-6)
    assert not Ssf(layers="attention").claims(make("llama")) & Lora(layers="mlp").claims(make("llama"))


@pytest.mark.parametrize(("given", "words"), [
    ({"std": -1.0}, "std must be 0 or more"), ({"shift": "some"}, "must be one of 'all'")])
def test_bad_settings(given: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        settings(Ssf, given, "adapt")
