"""Neurons, heads and blocks: the smallest are gone with all their weights; the others compute the same."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.compress.test_wanda import context
from trainwright import families
from trainwright.check import tiny
from trainwright.compress.magnitude import Magnitude
from trainwright.compress.wanda import Wanda
from trainwright.core import masks
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.lm.layers import LINEAR, as_linear_weight

IDS = torch.arange(24)[None]


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits                                                  # type: ignore[no-any-return]


def llama(shape: dict[str, int]) -> nn.Module:
    made = {"type": "llama", "vocab_size": 300} | tiny.SHAPES[tiny.LLAMA] | shape
    model = families.create(families.from_table(made, None, "a test"), 0, "a test").eval()
    model.config.use_cache = False                                                       # type: ignore[union-attr]
    return model


def test_neurons() -> None:
    """The half of the neurons with the smallest squares over gate, up and down is gone; cut out, the layers
    compute the same."""
    model, before = tiny.model(), tiny.model()
    Magnitude(structure="rows").operate(model, Context())
    for now, was in zip(model.model.layers, before.model.layers, strict=True):
        mine, old = now.mlp, was.mlp
        rows = old.gate_proj.weight, old.up_proj.weight, old.down_proj.weight.T
        worth = sum(w.detach().square().sum(1) for w in rows)
        kept = worth.topk(16).indices.sort().values
        gone = torch.ones(32, dtype=torch.bool).index_fill(0, kept, False)
        assert (mine.gate_proj.weight[gone] == 0).all() and (mine.down_proj.weight[:, gone] == 0).all()
        assert torch.equal(mine.up_proj.weight[kept], old.up_proj.weight[kept])
        x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
        small = (old.act_fn(x @ old.gate_proj.weight[kept].T) * (x @ old.up_proj.weight[kept].T)
                 ) @ old.down_proj.weight[:, kept].T
        assert torch.allclose(mine(x), small, atol=1e-6)
        assert torch.equal(now.self_attn.q_proj.weight, was.self_attn.q_proj.weight)


def test_a_head_goes_with_its_queries(tmp_path: Path) -> None:
    shape = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = llama(shape)
    Wanda(structure="heads").operate(model, context(tmp_path, model))
    for layer in model.model.layers:
        part = layer.self_attn
        keys = part.k_proj.weight.view(2, 4, 16).ne(0).any(-1).any(-1)
        assert int(keys.sum()) == 1, "of two key-value heads one stays"
        queries = part.q_proj.weight.view(2, 2, 4, 16).ne(0).any(-1).any(-1)
        assert torch.equal(queries, keys[:, None].expand(2, 2)), "with both of its query heads"
        outputs = part.o_proj.weight.view(16, 2, 8).ne(0).any(0).any(-1)
        assert torch.equal(outputs, keys)


@pytest.mark.parametrize("kind", [tiny.LLAMA, tiny.GPT2])
def test_a_block_that_is_gone_adds_nothing(kind: str) -> None:
    model, before = tiny.model(kind), tiny.model(kind)
    for name, p in before.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(p, generator=torch.Generator().manual_seed(1))
    model.load_state_dict(before.state_dict())
    Magnitude(structure="layers", sparsity=0.5).operate(model, Context())
    blocks = before.model.layers if kind == tiny.LLAMA else before.transformer.h
    inside = [[as_linear_weight(m).detach() for m in b.modules() if isinstance(m, LINEAR)] for b in blocks]
    worth = [sum(float(w.square().sum()) for w in weights) for weights in inside]
    del blocks[worth.index(min(worth))]
    assert torch.allclose(logits(model), logits(before), atol=1e-5)
    assert all(not mask.any() for mask in masks.of(model).values())


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="structure = 'rows' finds nothing to remove in layers = 'attention'"):
        Magnitude(structure="rows", layers="attention").operate(tiny.model(), Context())
    with pytest.raises(ValueError, match="leave one of them out"):
        Wanda(structure="heads", pattern="2:4")
