"""Next-token loss by hand, and its numbers by domain."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from trainwright.core.context import Context
from trainwright.pretrain.next_token import NextToken


def batch_of(ids: torch.Tensor) -> dict[str, object]:
    targets = ids.roll(-1, 1)
    targets[:, -1] = -100
    domain = torch.arange(len(ids))[:, None].expand_as(ids) % 2
    return {
        "input_ids": ids,
        "targets": targets,
        "position_ids": torch.arange(ids.shape[1]).expand_as(ids),
        "domain": domain,
        "domains": ("a", "b"),
    }


def test_it_is_the_loss_that_transformers_gives():
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=60, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
        )
    ).eval()
    ids = torch.randint(60, (4, 12), generator=torch.Generator().manual_seed(0))
    batch, ctx, method = batch_of(ids), Context(), NextToken()
    values = method.loss(model, batch, {}, ctx)
    assert method.count(batch) == 4 * 11 and values.shape == (4, 12) and (values[:, -1] == 0).all()
    assert torch.allclose(
        values.sum() / method.count(batch), model(input_ids=ids, labels=ids).loss, atol=1e-5
    )
    logits = model(input_ids=ids).logits
    assert torch.allclose(values[:, 0], F.cross_entropy(logits[:, 0], ids[:, 1], reduction="none"), atol=1e-5)
    for i, name in enumerate("ab"):
        ((noted, weight),) = ctx.notes[f"train_loss/{name}"]
        assert weight == 22 and abs(float(noted) - float(values[i::2].sum()) / 22) < 1e-5
