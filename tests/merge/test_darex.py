"""DAREx-q: DARE at q = 1 - p, a smaller error than DARE's at another q, and only where it should drop."""

from __future__ import annotations

import pytest
import torch

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make
from trainwright.merge.dare import Dare
from trainwright.merge.darex import Darex
from trainwright.stages.merge import combined

draw = torch.Generator().manual_seed(0)
BASE, *MODELS = (torch.randn(60, 50, generator=draw) for _ in range(3))
NAME = "model.layers.0.mlp.up_proj.weight"


def test_with_q_of_the_density_it_is_dare() -> None:
    for q in (0.0, 0.1):
        made = combined(NAME, MODELS, BASE, [Darex(density=0.1, q=q)], Context(seed=3))
        assert torch.equal(made, combined(NAME, MODELS, BASE, [Dare(density=0.1)], Context(seed=3)))


def test_q_divides_what_is_kept() -> None:
    dare, darex = (
        combined(NAME, MODELS[:1], BASE, [Darex(density=0.1, q=q)], Context()) - BASE for q in (0.1, 0.4)
    )
    assert torch.allclose(dare, 4 * darex, atol=1e-5)


def test_a_larger_q_is_nearer_to_the_outputs_at_high_drop_rates() -> None:
    """The paper's reason: the variance of a sum of n entries, each divided by 1 - p, grows as 1/(1 - p)."""
    x = torch.randn(50, 200, generator=torch.Generator().manual_seed(1))
    wanted = (MODELS[0] - BASE) @ x

    def error(q: float) -> float:
        total = 0.0
        for seed in range(5):
            ctx = Context(seed=seed)
            made = combined(NAME, MODELS[:1], BASE, [Darex(density=0.01, q=q)], ctx) - BASE
            total += float((made @ x - wanted).norm() / wanted.norm()) / 5
        return total
    assert error(0.2) < 0.3 * error(0.01)


def test_embeddings_norms_and_head_keep_what_was_learned() -> None:
    for name in ("lm_head.weight", "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight"):
        assert torch.allclose(combined(name, MODELS[:1], BASE, [Darex()], Context()), MODELS[0], atol=1e-6)


def test_mistakes() -> None:
    with pytest.raises(UserError, match="q must be from density"):
        make(Darex, {"density": 0.1, "q": 0.05}, "merged")
    with pytest.raises(UserError, match="darex needs the model"):
        combined(NAME, MODELS, None, [Darex()], Context())
