"""Stages that benches put before the one that is compared: phases of training in the way of the suite
``pretrain``."""

from __future__ import annotations

from typing import Any

LARGE: dict[str, Any] = {
    "type": "llama",
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "initializer_range": 0.06,
}
"""The model of that suite."""
NARROW = LARGE | {
    "hidden_size": 48,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
"""The same at half its width."""


def phase(
    name: str,
    tokens: int,
    schedule: dict[str, Any],
    *,
    model: dict[str, Any] | None = None,
    source: str = "",
    surgery: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A stage that trains ``model`` from scratch, or continues from the stage ``source``."""
    taken = {"data": "corpus"} | ({} if model else {"model": source})
    start: dict[str, Any] = {"from": taken} | ({"model": model} if model else {})
    return (
        {"name": name, "kind": "train", "tokens": tokens, "batch_tokens": 1024}
        | start
        | {
            "methods": [
                *([surgery] if surgery else []),
                {"use": "pack", "length": 256, "domains": ["prose"]},
                {"use": "next_token"},
                {"use": "clip_gradients", "norm": 1.0},
                {"use": "adamw", "lr": 6e-3, "weight_decay": 0.1},
                schedule,
            ]
        }
    )
