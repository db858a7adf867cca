"""Tokens are drawn from the softmax, whatever the rows beside them."""
from __future__ import annotations

import torch

from trainwright.lm.generation import drawn


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -9.0]]).repeat(4000, 1)
    draws = [torch.Generator().manual_seed(i) for i in range(4000)]
    for top_k, temperature in ((0, 2.0), (2, 1.0)):
        picked = drawn(logits, draws, [temperature] * 4000, top_k).argmax(1)
        share = picked.bincount(minlength=4) / 4000
        kept = logits[0] if not top_k else torch.tensor([-torch.inf, 1.0, 2.0, -torch.inf])
        assert (share - (kept / temperature).softmax(0)).abs().max() < 0.03    # about four standard errors
    assert drawn(logits[:9], draws[:9], [0.0] * 9, 0).argmax(1).tolist() == [2] * 9
