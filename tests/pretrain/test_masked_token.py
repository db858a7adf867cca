"""Masked language modeling: transformers' own loss, a model that learns to fill gaps, and who is refused."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED
from trainwright.pretrain.masked_token import MaskedToken

BERT = {"type": "bert", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 64, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "vocab_size": 50}


def test_it_is_the_loss_of_transformers_token_by_token() -> None:
    model = families.create(families.from_table(BERT, None, "here"), 0, "here")
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(50, (3, 12), generator=draw)
    there = (torch.arange(12) < torch.tensor([[12], [7], [3]])).long()
    targets = torch.where((torch.rand(3, 12, generator=draw) < 0.3) & there.bool(), ids, UNTRAINED)
    batch = {"input_ids": ids, "attention_mask": there, "targets": targets}
    losses = MaskedToken().loss(model, batch, {}, Context())
    wanted = model(input_ids=ids, attention_mask=there, labels=targets).loss
    assert losses.shape == (3, 12) and torch.equal(losses == 0, targets == UNTRAINED)
    assert torch.allclose(losses.sum() / MaskedToken().count(batch), wanted)
    alone = model(input_ids=ids[1:2, :7]).logits[0]                                      # padding is not read
    assert torch.allclose(losses[1, :7], F.cross_entropy(alone, targets[1, :7], reduction="none"), atol=1e-6)


def test_a_batch_without_gaps() -> None:
    batch = {"input_ids": torch.zeros(1, 2), "targets": torch.zeros(1, 2)}
    with pytest.raises(UserError, match=r"add \{ use = \"mask_words\" \}"):
        MaskedToken().loss(torch.nn.Linear(1, 1), batch, {}, Context())
