"""What the tests of linear attention share: a small Llama, and a layer's inputs as naive loops read them."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from tests.lm.architectures import make
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Surgery
from trainwright.lm import linear_attention as linear
from trainwright.lm import mixing

IDS = torch.arange(48).reshape(2, 24) * 11 % 64


def converted(method: Surgery) -> nn.Module:
    model = make("llama")
    method.operate(model, Context())
    return model.eval()


def read_by_first_layer(model: nn.Module, ids: Tensor) -> mixing.Heads:
    decoder = model.get_decoder()
    x = decoder.layers[0].input_layernorm(decoder.embed_tokens(ids))
    turned = decoder.rotary_emb(x, torch.arange(ids.shape[1])[None])
    return linear.projected(decoder.layers[0].self_attn, x, turned)


def mixed(model: nn.Module, heads: mixing.Heads) -> Tensor:
    places = torch.arange(heads.q.shape[2]).expand(len(heads.q), -1)
    return model.get_decoder().layers[0].self_attn.linear(heads, mixing.seen_of(None, places))


@torch.no_grad()
def check_memory(model: nn.Module) -> None:
    """One token at a time, from a memory of one size, the model says what it says of the whole."""
    whole = model(input_ids=IDS, use_cache=False).logits
    cache, sizes = DynamicCache(), []
    said = [model(input_ids=IDS[:, :7], past_key_values=cache, use_cache=True).logits]
    for at in range(7, 24):
        said.append(model(input_ids=IDS[:, at:at + 1], past_key_values=cache, use_cache=True).logits)
        sizes.append(sum(layer.nbytes() for layer in cache.layers))
    torch.testing.assert_close(torch.cat(said, 1), whole, atol=1e-4, rtol=1e-4)
    assert len(set(sizes)) == 1 and cache.get_seq_length() == 24


@torch.no_grad()
def check_padding(model: nn.Module) -> None:
    """A shorter prompt, padded in front, goes on as it does alone."""
    there = torch.ones_like(IDS)
    there[1, :9] = 0
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    both = model.generate(input_ids=IDS, attention_mask=there, **how)
    alone = model.generate(input_ids=IDS[1:, 9:], attention_mask=there[1:, 9:], **how)
    assert torch.equal(both[1, 24:], alone[0, 15:])


@torch.no_grad()
def check_documents(model: nn.Module) -> None:
    """Two documents in a row are read as each by itself."""
    places = torch.cat([torch.arange(13), torch.arange(11)]).expand(2, -1)
    whole = model(input_ids=IDS, position_ids=places, use_cache=False).logits
    parts = [model(input_ids=part, use_cache=False).logits for part in (IDS[:, :13], IDS[:, 13:])]
    torch.testing.assert_close(whole, torch.cat(parts, 1), atol=1e-4, rtol=1e-4)


def check_refusals(method: Surgery) -> None:
    for kind, why in (("gpt2", "has no attention of k_proj, o_proj, q_proj, v_proj"),
                      ("qwen3", "has no attention of"), ("gemma2", "is not over all tokens")):
        with pytest.raises(UserError, match=why):
            method.operate(make(kind), Context())
    dropping = make("llama", attention_dropout=0.1)
    with pytest.raises(UserError, match="drops attention in training"):
        method.operate(dropping, Context())
    twice = converted(method)
    with pytest.raises(UserError, match="is a linear attention already"):
        method.operate(twice, Context())
    mask = torch.ones(2, 1, 24, 24, dtype=torch.bool)
    with pytest.raises(UserError, match="from left to right alone"):
        mixing.seen_of(mask, None)
