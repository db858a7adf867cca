"""Tokens are drawn from the softmax, whatever the rows beside them."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainwright import families
from trainwright.core.errors import UserError
from trainwright.corpus import bpe
from trainwright.lm.generation import drawn, generate


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -9.0]]).repeat(4000, 1)
    draws = [torch.Generator().manual_seed(i) for i in range(4000)]
    for top_k, temperature in ((0, 2.0), (2, 1.0)):
        picked = drawn(logits, draws, [temperature] * 4000, top_k).argmax(1)
        share = picked.bincount(minlength=4) / 4000
        kept = logits[0] if not top_k else torch.tensor([-torch.inf, 1.0, 2.0, -torch.inf])
        assert (share - (kept / temperature).softmax(0)).abs().max() < 0.03    # about four standard errors
    assert drawn(logits[:9], draws[:9], [0.0] * 9, 0).argmax(1).tolist() == [2] * 9


def test_sampling_depends_on_the_seed_alone(tmp_path: Path) -> None:
    tokenizer = bpe.train(["the sea the ship the rain"] * 3, 300)
    config = families.from_table({"type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}, tokenizer, "here")
    families.save(families.create(config, 0, "here"), tmp_path, tokenizer)
    said = [generate(tmp_path, "the sea", 8, 0.8, False, seed) for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2] and said[0].startswith("the sea")
    assert generate(tmp_path, "the sea", 8, 0.0, False, 1) == generate(tmp_path, "the sea", 8, 0.0, False, 2)
    with pytest.raises(UserError, match="no chat template; leave out --chat"):
        generate(tmp_path, "hello", 8, 0.8, True, 0)
