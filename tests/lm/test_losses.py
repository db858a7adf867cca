"""Cross-entropy in tiles equals the plain one, keeps far less, and fits any head."""
from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.lm import cross_entropy
from trainwright.lm.cross_entropy import tiled_cross_entropy
from trainwright.lm.losses import isolation_error, positions, token_losses, trained_tokens, way_of


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("size", [1.0, 60.0])
def test_tiles_give_the_values_and_gradients_of_the_whole(
    bias: bool, frozen: bool, size: float, monkeypatch: pytest.MonkeyPatch
):
    """Also with logits whose exponentials float32 does not hold."""
    monkeypatch.setattr(cross_entropy, "CPU_TILE", 16)
    g = torch.Generator().manual_seed(0)
    hidden, weight = size * torch.randn(37, 8, generator=g), torch.randn(53, 8, generator=g)
    b = torch.randn(53, generator=g) if bias else None
    targets, upstream = torch.randint(53, (37,), generator=g), torch.rand(37, generator=g)
    grads = []
    for tiled in (True, False):
        leaves = [t.clone().requires_grad_() for t in (hidden, weight, b) if t is not None]
        h, w, c = leaves[0], leaves[1], leaves[2] if bias else None
        for head in leaves[1:]:
            head.requires_grad_(not frozen)
        losses = (
            tiled_cross_entropy(h, w, c, targets)
            if tiled
            else F.cross_entropy(F.linear(h, w, c), targets, reduction="none")
        )
        (losses * upstream).sum().backward()
        grads.append([losses.detach(), *(t.grad for t in leaves if t.requires_grad)])
    assert len(grads[0]) == (2 if frozen else 3 + bias)
    for mine, plain in zip(*grads, strict=True):
        assert torch.allclose(mine, plain, atol=1e-5 * size)


@pytest.mark.parametrize("frozen", [False, True])
def test_impossible_words_cost_nothing(frozen: bool, monkeypatch: pytest.MonkeyPatch):
    """A head may forbid words by a bias of -inf: a whole tile of them, and those at the border of another."""
    monkeypatch.setattr(cross_entropy, "CPU_TILE", 16)
    g = torch.Generator().manual_seed(0)
    hidden, weight, bias = torch.randn(5, 8, generator=g), torch.randn(48, 8, generator=g), torch.zeros(48)
    bias[:16] = bias[31] = bias[32] = float("-inf")
    targets = torch.tensor([16, 20, 30, 33, 47])
    h, c = (hidden.clone().requires_grad_() for _ in range(2))
    losses = tiled_cross_entropy(h, nn.Parameter(weight, requires_grad=not frozen), bias, targets)
    plain = F.cross_entropy(F.linear(c, weight, bias), targets, reduction="none")
    assert torch.allclose(losses, plain, atol=1e-5)
    losses.sum().backward()
    plain.sum().backward()
    assert torch.allclose(h.grad, c.grad, atol=1e-5)


def test_a_frozen_head_makes_each_tile_once(monkeypatch: pytest.MonkeyPatch):
    made = 0

    def logits(*given: Any) -> Tensor:
        nonlocal made
        made += 1
        return plain(*given)
    plain = cross_entropy.logits_of
    monkeypatch.setattr(cross_entropy, "logits_of", logits)
    monkeypatch.setattr(cross_entropy, "CPU_TILE", 16)
    targets, counts = torch.arange(32), []
    for frozen in (False, True):
        made, weight = 0, nn.Parameter(torch.ones(48, 8), requires_grad=not frozen)
        tiled_cross_entropy(torch.ones(32, 8, requires_grad=True), weight, None, targets).sum().backward()
        counts.append(made)
    assert counts == [12, 6]


def test_no_logits_are_kept_for_backward():
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4096, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
        )
    )
    ids = torch.randint(4096, (4, 64))
    batch = {"input_ids": ids, "targets": ids.roll(-1, 1), "position_ids": torch.arange(64).expand(4, 64)}

    def kept(loss: object) -> int:
        seen: dict[int, int] = {}

        def pack(t: torch.Tensor) -> torch.Tensor:
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss()  # type: ignore[operator]
        return sum(seen.values())

    full = kept(
        lambda: F.cross_entropy(model(input_ids=ids).logits.flatten(0, 1), batch["targets"].flatten())
    )
    ours = kept(lambda: token_losses(model, batch, Context()).sum())
    assert full - ours > 0.9 * 4 * 64 * 4096 * 4


def test_only_trained_positions_reach_the_head():
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=60, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
        )
    ).eval()
    ids = torch.randint(60, (2, 10), generator=torch.Generator().manual_seed(1))
    targets = torch.where(torch.arange(10) % 5 == 3, ids.roll(-1, 1), -100)
    batch = {"input_ids": ids, "targets": targets, "position_ids": torch.arange(10).expand(2, 10)}
    losses = token_losses(model, batch, Context())
    plain = F.cross_entropy(model(input_ids=ids).logits.flatten(0, 1), targets.flatten(), reduction="none",
                            ignore_index=-100).view(2, 10)
    assert torch.allclose(losses, plain, atol=1e-5) and int((losses != 0).sum()) == 4


def test_a_head_that_is_more_than_linear_goes_through_the_models_own_forward():
    capped = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=60,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            final_logit_softcapping=2.0,
        )
    ).eval()
    assert not way_of(capped).plain_head
    with torch.no_grad():
        capped.get_output_embeddings().weight.mul_(30)
    ids = torch.randint(60, (2, 9))
    batch = {"input_ids": ids, "targets": ids.roll(-1, 1), "position_ids": torch.arange(9).expand(2, 9)}
    losses = token_losses(capped, batch, Context())
    plain = F.cross_entropy(
        capped(input_ids=ids).logits.flatten(0, 1), ids.roll(-1, 1).flatten(), reduction="none"
    ).view(2, 9)
    assert torch.allclose(losses, plain, atol=1e-4)
    assert way_of(
        GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    ).plain_head


def test_a_model_whose_documents_see_each_other_is_refused():
    class Leaky(LlamaForCausalLM):
        def forward(self, input_ids: torch.Tensor, use_cache: bool = False, **more: object) -> object:
            return super().forward(input_ids=input_ids, use_cache=use_cache)

    config = LlamaConfig(
        vocab_size=60, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = Leaky(config)
    # no plain head: its own forward is asked
    model.lm_head = nn.Sequential(nn.Linear(16, 60))
    model.get_output_embeddings = lambda: model.lm_head
    assert isolation_error(LlamaForCausalLM(config), 60, Context()) == 0
    with pytest.raises(UserError, match="isolate"):
        isolation_error(model, 60, Context())


@pytest.mark.slow
def test_compiled_code_gives_the_same_losses():
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=60, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
        )
    )
    ids = torch.randint(60, (2, 16))
    batch = {
        "input_ids": ids,
        "targets": ids.roll(-1, 1),
        "position_ids": torch.arange(8).repeat(2).expand(2, 16),
    }
    assert torch.allclose(
        token_losses(model, batch, Context(compile=True)), token_losses(model, batch, Context()), atol=1e-5
    )


@pytest.mark.slow
def test_the_promise_of_one_document_a_row_holds_in_compiled_code():
    """The mask is left out, with the same losses and gradients; a window shorter than the row is kept."""
    for model in (
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=60,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
            )
        ),
        MistralForCausalLM(
            MistralConfig(
                vocab_size=60,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                sliding_window=4,
            )
        ),
    ):
        ids = torch.randint(60, (2, 16), generator=torch.Generator().manual_seed(3))
        batch = {
            "input_ids": ids,
            "targets": ids.roll(-1, 1),
            "position_ids": torch.arange(16).expand(2, 16).contiguous(),
            "packed": False,
        }
        mask = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
        got = []
        for compiled in (False, True):
            model.zero_grad()
            losses = token_losses(model, batch, Context(compile=compiled))
            losses.sum().backward()
            got.append((losses.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])))
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*got, strict=True))
        assert ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] is mask


def test_a_micro_batch_in_which_nothing_is_trained_has_zero_gradients():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    batch = {"input_ids": torch.zeros(2, 8, dtype=torch.int64), "targets": torch.full((2, 8), -100),
             "position_ids": torch.arange(8).expand(2, 8)}
    token_losses(model, batch, Context()).sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_a_frozen_head_gets_no_gradient_and_the_body_the_same():
    grads = []
    for frozen in (False, True):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=60,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                tie_word_embeddings=False,
            )
        )
        model.lm_head.weight.requires_grad_(not frozen)
        ids = torch.randint(60, (2, 8), generator=torch.Generator().manual_seed(3))
        batch = {"input_ids": ids, "targets": ids.roll(-1, 1), "position_ids": torch.arange(8).expand(2, 8)}
        token_losses(model, batch, Context()).sum().backward()
        assert (model.lm_head.weight.grad is None) == frozen
        grads.append(model.model.norm.weight.grad)
    assert torch.allclose(*grads, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "bert", "llama", "opt", "gpt2"])
def test_positions_count_as_the_model_itself_counts(kind: str):
    """RoBERTa's begin behind the number of its padding token."""
    table = {
        "type": kind,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 40,
        "max_position_embeddings": 32,
        "pad_token_id": 1,
    }
    table |= (
        {"intermediate_size": 32}
        if kind == "llama"
        else {"ffn_dim": 32, "word_embed_proj_dim": 16}
        if kind == "opt"
        else {}
    )
    table |= {"is_decoder": True} if "bert" in kind else {}
    model = families.create(families.from_table(table, None, "here"), 0, "here").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "position" in name or "wpe" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    ids = torch.randint(2, 40, (2, 9), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "targets": ids.roll(-1, 1), "position_ids": torch.arange(9).expand(2, 9)}
    plain = F.cross_entropy(
        model(input_ids=ids).logits.flatten(0, 1), batch["targets"].flatten(), reduction="none"
    )
    assert torch.allclose(token_losses(model, batch, Context()).flatten(), plain, atol=1e-5)
    begin = 2 if "roberta" in kind else 0
    assert families.positions_of(model.config) == 32 - begin
    told = positions(model, batch)
    assert told is None or int(told.min()) == begin


def test_a_batch_of_something_else_is_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match="the batch has no targets, but chosen, rejected: what learns"):
        trained_tokens({"rejected": torch.zeros(2), "chosen": torch.zeros(2)})
