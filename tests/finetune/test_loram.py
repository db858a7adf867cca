"""LoRAM trains a smaller model, and every row and column that it learned comes back to its own
place in the whole one."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.lm.architectures import IDS, make, moved
from trainwright import families
from trainwright.compress.magnitude import Magnitude
from trainwright.core import masks
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make as settings
from trainwright.families import deltas
from trainwright.finetune.loram import Loram, on_disk

KINDS = pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "qwen3"])
ALL = Loram(rank=4, alpha=8.0, ratio=0.5, first=0, last=0, head=False)


def operated(kind: str, method: Loram = ALL, **given) -> nn.Module:
    model = make(kind, **given)
    method.operate(model, Context(seed=1))
    return model


def test_units_of_the_largest_weights_stay() -> None:
    model = make("llama")
    block = model.model.layers[0]
    with torch.no_grad():
        for layer in (block.mlp.gate_proj, block.mlp.up_proj):
            layer.weight[5] *= 100
        block.mlp.down_proj.weight[:, 9] *= 100
        # the second of two key-value heads
        block.self_attn.k_proj.weight[8:16] *= 10
    ALL.operate(model, Context())
    down, keys, queries = (
        model.get_submodule(f"model.layers.0.{n}")
        for n in ("mlp.down_proj", "self_attn.k_proj", "self_attn.q_proj")
    )
    assert len(down.columns) == 24 and {5, 9} <= set(down.columns.tolist())
    assert keys.rows.tolist() == list(range(8, 16))
    # the two query heads that it serves
    assert queries.rows.tolist() == list(range(16, 32))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_training_computes_what_a_smaller_model_computes(kind: str) -> None:
    """A plain model of half the heads and neurons, filled with what stays; its own additions too."""
    model, small = (
        operated(kind),
        make(kind, num_attention_heads=2, num_key_value_heads=1, intermediate_size=24, head_dim=8),
    )
    moved(model)
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            parameter.copy_(model.get_parameter(name))
        for name, layer in ALL.mine(model).items():
            small.get_submodule(name).weight += 2.0 * layer.lora_B @ layer.lora_A
    for layer in ALL.mine(model).values():
        # nothing of the rest is looked at in training
        layer.whole = None
    assert torch.allclose(model.train()(input_ids=IDS).logits, small.train()(input_ids=IDS).logits, atol=1e-5)
    held = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert held == sum(p.numel() for p in small.parameters())


@KINDS
def test_elsewhere_it_is_the_whole_model_and_starts_as_that(kind: str) -> None:
    model, before = operated(kind), make(kind)
    assert torch.allclose(model.eval()(input_ids=IDS).logits, before(input_ids=IDS).logits, atol=1e-6)
    assert not torch.allclose(model.train()(input_ids=IDS).logits, before(input_ids=IDS).logits, atol=1e-3)


@KINDS
def test_recovery_puts_every_row_and_column_back(kind: str) -> None:
    model, plain = operated(kind), make(kind)
    logits = moved(model)
    learned = {
        n: (m.rows, m.columns, 2.0 * m.lora_B.detach() @ m.lora_A.detach())
        for n, m in ALL.mine(model).items()
    }
    ALL.fold(model)
    assert torch.allclose(model.eval()(input_ids=IDS).logits, logits, atol=1e-5)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    for name, (rows, columns, product) in learned.items():
        old, new = (m.get_submodule(name).weight.detach() for m in (plain, model))
        change = (new - old).T if kind == "gpt2" else new - old
        inside = torch.zeros(change.shape, dtype=torch.bool)
        for i, row in enumerate(rows.tolist()):
            for j, column in enumerate(columns.tolist()):
                inside[row, column] = True
                assert abs(float(change[row, column] - product[i, j])) < 1e-6
        # GPT-2's attention stays whole
        assert not change[~inside].any() and bool(inside.all()) == (".attn." in name)
    assert all(
        torch.equal(p, plain.get_parameter(n)) for n, p in model.named_parameters() if n.endswith("bias")
    )


@KINDS
def test_the_delta_is_a_lora_of_the_original_model(kind: str, tmp_path: Path) -> None:
    model = operated(kind)
    logits = moved(model)
    narrow = copy.deepcopy(ALL.mine(model))
    deltas.write(model, [ALL], 1, tmp_path, None)
    theirs = peft.PeftModel.from_pretrained(make(kind), tmp_path / "adapter").eval()
    assert torch.allclose(theirs(input_ids=IDS).logits, logits, atol=1e-5)
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name, layer in narrow.items():
        A = stored[f"base_model.model.{name}.lora_A.weight"]
        assert torch.equal(A[:, layer.columns], layer.lora_A) and int((A != 0).any(0).sum()) == len(
            layer.columns
        )
    again = make(kind)
    deltas.put(again, tmp_path / "adapter")
    assert torch.allclose(again.eval()(input_ids=IDS).logits, logits, atol=1e-6)
    assert torch.allclose(families.load(tmp_path, "test").eval()(input_ids=IDS).logits, logits, atol=1e-5)


def test_first_and_last_blocks_stay_whole_and_choices_can_be_random() -> None:
    method = Loram(ratio=0.75, choose="random", first=1, last=2)
    model = operated("llama", method, num_hidden_layers=4)
    shapes = [tuple(b.mlp.up_proj.weight.shape) for b in model.model.layers]
    assert shapes == [(48, 32), (12, 32), (48, 32), (48, 32)]
    rows = model.model.layers[1].mlp.up_proj.rows
    assert torch.equal(rows, model.model.layers[1].mlp.down_proj.columns) and len(set(rows.tolist())) == 12
    other = make("llama", num_hidden_layers=4)
    method.operate(other, Context(seed=2))
    assert not torch.equal(rows, other.model.layers[1].mlp.up_proj.rows)
    with pytest.raises(UserError, match="nothing to leave out: of 2 blocks"):
        operated("llama", Loram())


@pytest.mark.parametrize("kind", ["phi3", "gpt_neox", "olmo2"])
def test_attention_of_another_form_stays_whole(kind: str) -> None:
    """Phi-3 makes queries, keys and values in one layer, and a gate with its layer; OLMo 2 has
    norms over all heads."""
    model, before = operated(kind), make(kind)
    for name, layer in ALL.mine(model).items():
        cut = len(layer.rows) * len(layer.columns) < layer.whole.numel()
        assert cut == ("mlp" in name)
    assert model.train()(input_ids=IDS, labels=IDS).loss.isfinite()
    assert torch.allclose(model.eval()(input_ids=IDS).logits, before(input_ids=IDS).logits, atol=1e-6)


def test_what_is_left_out_waits_in_a_file(tmp_path: Path) -> None:
    for tensor in (torch.randn(5, 7), torch.randn(4, 3).to(torch.bfloat16), torch.randn(6, 2).T):
        kept = on_disk(tensor, tmp_path)
        assert (
            torch.equal(kept, tensor) and kept.dtype == tensor.dtype and kept.data_ptr() != tensor.data_ptr()
        )
    # without a name: gone with the tensor
    assert not list(tmp_path.iterdir())


def test_only_additions_train_and_bf16_agrees() -> None:
    model = operated("llama")
    exact = moved(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(model.eval()(input_ids=IDS).logits.float(), exact, atol=0.1)
    grads: list[list[Tensor]] = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model.train()(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        grads.append([p.grad for n, p in model.named_parameters() if p.requires_grad and "lora_" in n])
    assert len(grads[0]) == 28 == sum(p.requires_grad for p in model.parameters())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


# ---- the stage before -------------------------------------------------------------------------------------


def aligned(kind: str, method: Loram) -> nn.Module:
    """The model as a stage with ``align = true`` leaves it: all that trains has moved, the masks hold."""
    model = operated(kind, dataclasses.replace(method, align=True))
    with torch.no_grad():
        for i, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    masks.enforce(model)
    return model.eval()


@KINDS
def test_the_pruned_model_is_aligned_and_the_adapter_trains_on_what_came_of_it(kind: str) -> None:
    """In training the layers are those of the aligned model, cut; elsewhere they are the original ones."""
    pruned, model, before = aligned(kind, ALL), make(kind), make(kind)
    ALL.operate(model, Context(seed=1, frozen={"pruned": pruned}))
    logits = pruned(input_ids=IDS).logits
    assert not torch.allclose(logits, before(input_ids=IDS).logits, atol=1e-3)
    for layer in ALL.mine(model).values():                                    # and no dropout
        layer.train()
    assert torch.allclose(model(input_ids=IDS).logits, logits, atol=1e-5)
    assert torch.allclose(model.eval()(input_ids=IDS).logits, before(input_ids=IDS).logits, atol=1e-6)
    small = sum(len(m.rows) * len(m.columns) for m in ALL.mine(model).values())
    assert small < 0.8 * sum(m.whole.numel() for m in ALL.mine(model).values())


def test_alignment_trains_the_layers_alone_and_prunes_what_the_adapter_leaves_out() -> None:
    model, twin = operated("llama", dataclasses.replace(ALL, align=True)), operated("llama")
    trained = {n.rpartition(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == set(ALL.mine(twin))
    for name, layer in ALL.mine(twin).items():
        mask = torch.zeros(layer.whole.shape, dtype=torch.bool)
        mask[layer.rows[:, None], layer.columns] = True
        assert torch.equal(masks.of(model)[f"{name}.weight"], mask)
    # what a mask has removed already is not removed twice: another method may prune
    kept = {n: m.clone() for n, m in masks.of(model).items()}
    Loram(ratio=0.9, first=0, last=0, align=True).operate(model, Context(seed=1))
    assert all(torch.equal(m, kept[n]) for n, m in masks.of(model).items())


@pytest.mark.parametrize("choose", ["magnitude", "random"])
@pytest.mark.parametrize(("prune", "share"), [("unstructured", 0.75), ("1:4", 0.75), ("4:8", 0.5)])
def test_single_weights_are_left_out_in_training_and_recovery_is_the_identity(
    prune: str, share: float, choose: str
) -> None:
    method = Loram(rank=4, alpha=8.0, ratio=0.75, first=0, last=1, prune=prune, choose=choose)
    model, before = operated("llama", method), make("llama")
    for name, layer in method.mine(model).items():
        whole = before.get_submodule(name).weight
        assert layer.weight.shape == whole.shape == layer.whole.shape
        zero = layer.weight == 0
        assert float(zero.float().mean()) == (share if ".0." in name else 0.0)
        assert torch.equal(layer.weight[~zero], whole[~zero])
        if choose == "magnitude" and prune == "unstructured" and ".0." in name:
            assert whole[zero].abs().max() <= whole[~zero].abs().min()
    logits = moved(model)
    for name, layer in method.mine(model).items():
        before.get_submodule(name).weight.data += 2.0 * layer.lora_B.detach() @ layer.lora_A.detach()
    assert torch.allclose(before(input_ids=IDS).logits, logits, atol=1e-5)


def test_masks_of_another_method_say_what_is_left_out() -> None:
    """Magnitude pruning 2:4, then the adapter on that; and a mask that leaves nothing of a neuron cuts it."""
    sparse, model = make("llama"), make("llama")
    Magnitude(pattern="2:4").operate(sparse, Context())
    down = "model.layers.1.mlp.down_proj"
    mask = torch.ones_like(sparse.get_submodule(down).weight, dtype=torch.bool)
    mask[:, 10:] = False
    masks.keep(sparse, f"{down}.weight", mask)
    sparse.eval()
    logits = sparse(input_ids=IDS).logits
    ALL.operate(model, Context(seed=1, frozen={"pruned": sparse}))
    assert torch.allclose(model.train()(input_ids=IDS).logits, logits, atol=1e-5)
    layers = ALL.mine(model)
    assert layers[down].columns.tolist() == list(range(10))
    assert layers[down.replace("down", "up")].rows.tolist() == list(range(10))
    assert layers["model.layers.0.mlp.down_proj"].weight.shape == (32, 48)


def test_the_model_named_is_let_go_of_and_must_fit(tmp_path: Path) -> None:
    ctx = Context(seed=1, frozen={"pruned": aligned("llama", ALL)}, folder=tmp_path)
    ALL.operate(make("llama"), ctx)
    assert not ctx.frozen
    other = make("llama", intermediate_size=24)
    with pytest.raises(UserError, match=r"another shape: model.layers.0.mlp"):
        ALL.operate(make("llama"), Context(frozen={"pruned": other}))
    other = make("llama")
    other.model.norm.weight.data += 1
    with pytest.raises(UserError, match=r"another model.norm.weight than the model"):
        ALL.operate(make("llama"), Context(frozen={"pruned": other}, folder=tmp_path))
    # in a plan nobody has trained either
    ALL.operate(make("llama"), Context(frozen={"pruned": other}))


def test_the_delta_of_an_aligned_run_comes_back_without_the_aligned_model(tmp_path: Path) -> None:
    pruned = aligned("llama", dataclasses.replace(ALL, ratio=0.75))
    model, again = make("llama"), make("llama")
    ALL.operate(model, Context(seed=1, frozen={"pruned": pruned}))
    logits = moved(model)
    shapes = {n: m.weight.shape for n, m in ALL.mine(model).items()}
    deltas.write(model, [ALL], 1, tmp_path, None)
    deltas.put(again, tmp_path / "adapter")
    assert torch.allclose(again.eval()(input_ids=IDS).logits, logits, atol=1e-6)
    assert {n: m.weight.shape for n, m in ALL.mine(again).items()} == shapes


def test_the_head_has_an_addition_where_it_is_not_tied(tmp_path: Path) -> None:
    method = dataclasses.replace(ALL, head=True)
    model = operated("llama", method, tie_word_embeddings=False)
    assert {n for n in method.mine(model) if ".layers." not in n} == {"lm_head"}
    assert method.claims(make("llama", tie_word_embeddings=False)) >= {"lm_head.weight"}
    logits = moved(model)
    without = model.lm_head.lora_B.detach().clone()
    model.lm_head.lora_B.data.zero_()
    assert not torch.allclose(model(input_ids=IDS).logits, logits, atol=1e-4)
    model.lm_head.lora_B.data.copy_(without)
    deltas.write(model, [method], 1, tmp_path, None)
    plain = make("llama", tie_word_embeddings=False)
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    assert torch.allclose(theirs(input_ids=IDS).logits, logits, atol=1e-5)
    tied = operated("llama", method, tie_word_embeddings=True)
    assert "lm_head" not in method.mine(tied) and tied.lm_head.weight is tied.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"prune": "most"}, "prune must be such as"),
        ({"prune": "4:4"}, "must keep some"),
        ({"rank": 0}, "rank must be 1 or more"),
        ({"ratio": 1.0}, "ratio above 0 and less"),
        ({"choose": "largest"}, "must be one"),
    ],
)
def test_bad_settings(given: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        settings(Loram, given, "adapt")
