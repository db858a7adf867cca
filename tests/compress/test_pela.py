"""PELA: the rank, the best approximation, both terms by hand, and a second factoring that changes nothing."""
from __future__ import annotations

import pytest
import torch

from tests.lm.architectures import IDS, make
from trainwright.compress.pela import Pela
from trainwright.core.context import Context
from trainwright.core.errors import UserError

BATCH = {"input_ids": IDS, "targets": IDS.roll(-1, 1), "position_ids": torch.arange(20).expand(2, -1)}
FREE = {"feature": 0.0, "perturbation": 0.0}


def factored(**settings: float) -> tuple[torch.nn.Module, Pela]:
    model, method = make("llama"), Pela(**settings)
    method.operate(model, Context())
    return model, method


def test_rank_and_number_of_weights_are_those_of_the_rule() -> None:
    model, method = factored(reduction=3.0)
    up = model.model.layers[0].mlp.up_proj                                       # [48, 32]
    assert up.up.shape == (48, 6) and up.down.shape == (6, 32)                   # 32 * 48 // (3 * 80)
    whole = sum(w.numel() for n, w in make("llama").named_parameters() if n.endswith("proj.weight"))
    left = sum(layer.up.numel() + layer.down.numel() for layer in method.mine(model).values())
    assert 0.25 < left / whole <= 1 / 3
    with pytest.raises(UserError, match="too small to be divided by 100"):
        factored(reduction=100.0)


@torch.no_grad()
def test_it_starts_as_the_best_approximation_with_even_factors() -> None:
    model, _ = factored()
    layer, w = model.model.layers[1].self_attn.q_proj, make("llama").model.layers[1].self_attn.q_proj.weight
    left = torch.linalg.svdvals(w)[layer.down.shape[0]:].square().sum()
    torch.testing.assert_close((layer.matrix() - w).square().sum(), left)
    torch.testing.assert_close(layer.up.T @ layer.up, layer.down @ layer.down.T, atol=1e-5, rtol=1e-4)


def test_both_terms_by_hand() -> None:
    (model, method), teacher = factored(feature=0.5, perturbation=2.0, target=0.01), make("llama")
    ctx = Context(frozen={"teacher": teacher.requires_grad_(False)})
    method.init(model.train(), ctx)
    with torch.no_grad():
        states = [m(input_ids=IDS, output_hidden_states=True).hidden_states for m in (model, teacher)]
        blocks = [[s[1], None] for s in states]
        for kept, m in zip(blocks, (model, teacher), strict=True):               # before the final norm
            hook = m.model.layers[1].register_forward_hook(lambda *g, kept=kept: kept.__setitem__(1, g[2]))
            m(input_ids=IDS)
            hook.remove()
        feature = sum((a - b).square().mean(-1) for a, b in zip(*blocks, strict=True)) / 2
        apart = [float((layer.matrix() - teacher.get_submodule(name).weight).abs().max())
                 for name, layer in method.mine(model).items()]
    values = method.loss(model, BATCH, {}, ctx)
    expected = 0.5 * feature + 2.0 * sum((a - 0.01) ** 2 for a in apart) / len(apart)
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-4)
    values.sum().backward()
    assert model.model.layers[0].mlp.up_proj.up.grad.any()


@torch.no_grad()
def test_factored_again_it_is_the_same_model() -> None:
    model, method = factored(**FREE)
    before = model(input_ids=IDS).logits
    method.fold(model)
    again = Pela(**FREE)
    again.operate(model, Context())
    torch.testing.assert_close(model(input_ids=IDS).logits, before, atol=1e-4, rtol=1e-3)
    assert not again.asks() and Pela().asks()
