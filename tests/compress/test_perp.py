"""PERP: zeros stay zeros through training and merging, and the merged model is the one that was trained."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from trainwright.check import tiny
from trainwright.compress.magnitude import Magnitude
from trainwright.compress.perp import Perp
from trainwright.core import masks
from trainwright.core.context import Context

IDS = torch.arange(24)[None]


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits                                                  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["mask", "scale"])
@pytest.mark.parametrize("net", [tiny.LLAMA, tiny.GPT2])
def test_the_pattern_is_untouched_after_the_merge(net: str, kind: str) -> None:
    model, ctx = tiny.model(net), Context()
    Magnitude(pattern="2:4").operate(model, ctx)
    before, zeros = logits(model), {n: p == 0 for n, p in model.named_parameters() if n in masks.of(model)}
    method = Perp(rank=2, kind=kind)                                                     # type: ignore[arg-type]
    method.operate(model, ctx)
    assert torch.allclose(logits(model), before, atol=1e-5), "it starts as it was"
    draw = torch.Generator().manual_seed(0)
    for p in model.parameters():
        if p.requires_grad:
            p.data.add_(torch.randn(p.shape, generator=draw), alpha=0.1)
    trained = logits(model)
    method.fold(model)
    assert not torch.allclose(trained, before, atol=0.01)
    assert torch.allclose(logits(model), trained, atol=1e-5)
    for name, gone in zeros.items():
        assert torch.equal(model.get_parameter(name) == 0, gone), name
    assert len(zeros) == (14 if net == tiny.LLAMA else 8)


def test_a_mask_counts_where_a_weight_happens_to_be_zero() -> None:
    """A weight of 0 that the mask keeps is trained; without a mask it counts as pruned."""
    def changed(masked: bool) -> bool:
        model = tiny.model()
        weight = model.model.layers[0].self_attn.q_proj.weight                           # type: ignore[union-attr]
        weight.data[0, 0] = 0
        if masked:
            every = torch.ones_like(weight, dtype=torch.bool)
            masks.keep(model, "model.layers.0.self_attn.q_proj.weight", every)
        method = Perp(rank=2)
        method.operate(model, Context())
        for layer in method.mine(model).values():
            layer.perp_B.data.fill_(1.0)
        method.fold(model)
        return bool(model.model.layers[0].self_attn.q_proj.weight[0, 0] != 0)            # type: ignore[union-attr]

    assert changed(masked=True) and not changed(masked=False)


def test_what_is_trained() -> None:
    model = tiny.model(tiny.GPT2)
    Perp(rank=2, norms=False).operate(model, Context())
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(n.endswith((".bias", ".perp_A", ".perp_B")) and ".ln_" not in n for n in trained)
    assert {"transformer.h.0.mlp.c_fc.bias", "transformer.h.1.attn.c_attn.perp_A"} <= trained
    assert not any(n.startswith("lm_head") for n in trained), "its weights are the embeddings'"
    llama = tiny.model()
    Perp(rank=2, biases=False, norms=False).operate(llama, Context())
    trained = {n.rpartition(".")[2] for n, p in llama.named_parameters() if p.requires_grad}
    assert trained == {"perp_A", "perp_B"}
    assert llama.lm_head.kept is None                                                    # type: ignore[union-attr]
