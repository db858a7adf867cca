"""Attention by documents is attention with a mask, at the cost of the documents."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
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

from trainwright.core import flops, sharding
from trainwright.core.context import Context
from trainwright.core.method import Batch
from trainwright.lm import document_attention
from trainwright.lm import losses as scoring
from trainwright.lm.document_attention import DocumentMask
from trainwright.lm.losses import token_losses
from trainwright.planning.live import Live

NEVER = 1 << 40
ROWS = ([5, 1, 1, 10, 15], [32], [16, 16], [1] * 32)
"""Documents of one token among them, and a row with a single document."""
SIZES: dict[str, Any] = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
                         "num_attention_heads": 4, "num_key_value_heads": 2}


def llama() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).train()


def gpt2(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=64, attn_pdrop=dropout, resid_pdrop=0.0,
        embd_pdrop=0.0, bos_token_id=1, eos_token_id=2)).train()


def batch_of(rows: Sequence[Sequence[int]]) -> Batch:
    """Rows of documents of these lengths; the last six positions of the first row are padding, which goes on
    with the positions before it."""
    places = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in rows])
    ids = torch.randint(60, places.shape, generator=torch.Generator().manual_seed(1))
    targets = ids.roll(-1, 1)
    targets[0, -6:] = -100
    return {"input_ids": ids, "targets": targets, "position_ids": places}


def scored(model: nn.Module, batch: Batch, ctx: Context | None = None) -> tuple[Tensor, Tensor]:
    """The losses and all gradients."""
    model.zero_grad()
    losses = token_losses(model, batch, ctx or Context())
    losses.sum().backward()
    return losses.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


class Both:
    """Scores with a mask and by documents, and counts how often a layer attended by documents."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch, self.blocks, self.plain = monkeypatch, 0, document_attention._by_blocks
        monkeypatch.setattr(document_attention, "_by_blocks", self.count)

    def count(self, *given: Any) -> Tensor:
        self.blocks += 1
        return self.plain(*given)

    def of(self, model: nn.Module, batch: Batch, ctx: Context | None = None) -> list[tuple[Tensor, Tensor]]:
        found = []
        for long in (NEVER, 8):
            self.patch.setattr(document_attention, "LONG", long)
            torch.manual_seed(7)
            found.append(scored(model, batch, ctx))
            if long == NEVER:
                assert not self.blocks
        return found


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Both:
    return Both(monkeypatch)


@pytest.mark.parametrize("model", [llama, gpt2])
def test_it_is_the_masked_result(model: Any, both: Both) -> None:
    (losses, grads), (ours, our_grads) = both.of(model(), batch_of(ROWS))
    assert both.blocks == 2, "each layer"
    assert torch.allclose(ours, losses, atol=1e-5) and torch.allclose(our_grads, grads, atol=1e-5)


def test_it_is_the_masked_result_where_blocks_are_taken_again_in_the_backward_pass(both: Both) -> None:
    model = llama()
    sharding.checkpoint_blocks(model)
    (losses, grads), (ours, our_grads) = both.of(model, batch_of(ROWS))
    assert both.blocks == 4
    assert torch.allclose(ours, losses, atol=1e-5) and torch.allclose(our_grads, grads, atol=1e-5)


def test_autocast_computes_in_the_shorter_type(both: Both) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        (losses, grads), (ours, our_grads) = both.of(llama(), batch_of(ROWS))
    assert both.blocks == 2 and torch.allclose(ours, losses, atol=1e-2)
    assert F.cosine_similarity(our_grads, grads, dim=0) > 0.999


@pytest.mark.slow
def test_compiled_code_does_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is traced as always, and what took a compiler a minute is run operation by operation."""
    def never(mask: DocumentMask) -> Tensor:
        raise AssertionError("a mask was made")

    traced = torch.compile(scoring._joint, dynamic=False, backend="aot_eager")
    monkeypatch.setattr(scoring, "_compiled_joint", lambda: traced)
    monkeypatch.setattr(DocumentMask, "_make", never)
    found = []
    for long, compiled in ((NEVER, False), (8, True)):
        monkeypatch.setattr(document_attention, "LONG", long)
        found.append(scored(llama(), batch_of(ROWS), Context(compile=compiled)))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*found, strict=True))


def capped() -> nn.Module:
    torch.manual_seed(0)
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, attn_logit_softcapping=2.0)).train()


def windowed() -> nn.Module:
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4)).train()


@pytest.mark.parametrize("model", [capped, windowed, lambda: gpt2(dropout=0.5)])
def test_what_asks_for_more_keeps_its_mask(model: Any, both: Both) -> None:
    """A cap on scores, a window, dropout: exactly the numbers of before, which the mask alone gives."""
    before, after = both.of(model(), batch_of(ROWS))
    assert not both.blocks
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_what_must_be_differentiated_twice_keeps_its_mask(both: Both) -> None:
    with sdpa_kernel(SDPBackend.MATH):
        before, after = both.of(llama(), batch_of(ROWS))
    assert not both.blocks and torch.equal(before[0], after[0])


def test_one_document_a_row_needs_no_mask_as_before(both: Both) -> None:
    before, after = both.of(llama(), batch_of([[32], [32]]))
    assert not both.blocks and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# ---- the mask ----------------------------------------------------------------------------------------


def mask_of(rows: Sequence[Sequence[int]]) -> tuple[DocumentMask, Tensor]:
    """The mask of these documents, and the same one made entry by entry."""
    ends = torch.tensor([n for row in rows for n in row]).cumsum(0)
    edges = F.pad(ends, (1, 3), value=int(ends[-1]))
    edges[0] = 0
    dense = torch.stack([torch.block_diag(*(torch.ones(n, n).tril() for n in row)) for row in rows]).bool()
    return DocumentMask(edges.to(torch.int32), len(rows), sum(rows[0]), 32), dense[:, None]


def test_whoever_looks_at_it_sees_the_mask() -> None:
    mask, dense = mask_of(ROWS)
    assert mask.shape == dense.shape and mask.dtype == torch.bool and mask.made is None
    assert torch.equal(mask[:, :, 3:9, :7], dense[:, :, 3:9, :7]) and torch.equal(~mask, ~dense)
    q, k, v = torch.randn(3, 4, 2, 32, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(*(F.scaled_dot_product_attention(q, k, v, attn_mask=m) for m in (mask, dense)))


def test_who_writes_into_it_is_obeyed() -> None:
    mask, dense = mask_of(ROWS)
    q, k, v = torch.randn(3, 4, 2, 32, 8, generator=torch.Generator().manual_seed(0))
    module = nn.Module()
    plain = document_attention.attention(module, q, k, v, mask)[0]
    for one in (mask, dense):
        one[:, :, 20:, 19] = True
    told = document_attention.attention(module, q, k, v, mask)[0].transpose(1, 2)
    assert torch.allclose(told, F.scaled_dot_product_attention(q, k, v, attn_mask=dense), atol=1e-6)
    assert not torch.allclose(told.transpose(1, 2), plain, atol=1e-3)


# ---- what it costs -----------------------------------------------------------------------------------


def test_memory_grows_with_the_row_and_not_with_its_square(monkeypatch: pytest.MonkeyPatch) -> None:
    def peak(long: int, length: int) -> int:
        monkeypatch.setattr(document_attention, "LONG", long)
        batch, model = batch_of([[32] * (length // 32)]), llama()
        with Live() as found:
            scored(model, batch)
        return found.peak

    by_documents, masked = ([peak(long, n) for n in (256, 512, 1024)] for long in (8, NEVER))
    assert by_documents[2] - by_documents[1] < 2.1 * (by_documents[1] - by_documents[0])
    assert masked[2] - masked[1] > 3 * (masked[1] - masked[0]), "else the test says nothing"


def test_flops_are_those_of_the_documents(both: Both) -> None:
    """Forward two products of each document's square, backward five; a mask costs the row's."""
    batch, found = batch_of(ROWS), []
    for long in (NEVER, 8):
        both.patch.setattr(document_attention, "LONG", long)
        with flops.counting() as count:
            scored(llama(), batch)
        found.append(count.flops)
    squares = sum(n * n for row in ROWS for n in row)
    assert both.blocks == 2
    assert found[0] - found[1] == 2 * (2 + 5) * 2 * 4 * 4 * (4 * 32**2 - squares)


def test_the_operation_keeps_to_what_it_says_of_itself() -> None:
    """Its shapes without contents, its gradient, and that it writes into nothing that it was given."""
    mask, _ = mask_of(ROWS)
    g = torch.Generator().manual_seed(0)
    given = [torch.randn(4, heads, 32, 8, generator=g).requires_grad_() for heads in (4, 2, 2)]
    checked = torch.library.opcheck(
        document_attention.blocks, (*given, mask.edges, 0.3),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))
    assert set(checked.values()) == {"SUCCESS"}


# ---- a GPU's kernel ----------------------------------------------------------------------------------


def test_a_kernel_for_various_lengths_is_given_rows_one_behind_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a kernel of the same arguments that any machine has."""
    from torch.nn.attention import varlen

    def kernel(q: Tensor, k: Tensor, v: Tensor, edges: Tensor, same: Tensor, most: int, other: int, *,
               scale: float, window_size: tuple[int, int], enable_gqa: bool) -> Tensor:
        assert edges is same and most == other == 32 and window_size == (-1, 0) and enable_gqa
        parts = [[t[a:b].transpose(0, 1) for t in (q, k, v)] for a, b in pairwise(edges)]
        return torch.cat([F.scaled_dot_product_attention(*p, scale=scale, is_causal=True, enable_gqa=True)
                          .transpose(0, 1) for p in parts if p[0].shape[1]])

    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    mask, dense = mask_of(ROWS)
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(4, heads, 32, 8, generator=g) for heads in (4, 2, 2))
    told = document_attention._by_lengths(q, k, v, mask, 0.3).transpose(1, 2)
    plain = F.scaled_dot_product_attention(q, k, v, attn_mask=dense, scale=0.3, enable_gqa=True)
    assert torch.allclose(told, plain, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_does_the_same_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = {n: t.cuda() for n, t in batch_of(ROWS).items()}
    found = []
    for long in (NEVER, 8):
        monkeypatch.setattr(document_attention, "LONG", long)
        with torch.autocast("cuda", torch.bfloat16):
            found.append(scored(LlamaForCausalLM(LlamaConfig(**SIZES | {"head_dim": 16})).cuda(), batch))
    assert torch.allclose(found[0][0], found[1][0], atol=2e-2)
