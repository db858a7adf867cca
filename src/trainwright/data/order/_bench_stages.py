"""Stages that benches put before the one that is compared."""
from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {"name": "small", "kind": "corpus", "from": {"data": "corpus"},
                         "methods": [{"use": "random_subset", "share": 0.06}]}
"""So little of the corpus of the suite ``pretrain`` that its budget is about three epochs of it."""
VANILLA: dict[str, Any] = {
    "name": "vanilla", "kind": "train", "from": {"data": "small"}, "tokens": 150_000, "batch_tokens": 1024,
    "model": {"type": "llama", "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 4,
              "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
              "tie_word_embeddings": True, "initializer_range": 0.06},
    "methods": [{"use": "pack", "length": 256, "domains": ["prose"]}, {"use": "next_token"},
                {"use": "clip_gradients", "norm": 1.0},
                {"use": "adamw", "lr": 6e-3, "weight_decay": 0.1}, {"use": "cosine", "warmup": 0.05}]}
"""That suite's model, trained on ``SMALL`` in the ordinary way."""
