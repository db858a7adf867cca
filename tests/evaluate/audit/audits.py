"""A small corpus with three splits and a small model, for what audits read."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.corpus.corpora import build


def small(vocab_size: int = 400, seed: int = 0, **more: Any) -> LlamaForCausalLM:
    """A Llama with random weights."""
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
             "initializer_range": 0.3, "max_position_embeddings": 64} | more
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **shape)).eval()


def corpus(folder: Path, documents: int = 60, words: int = 12) -> Path:
    """Documents of random letters: nothing but memory lowers their loss."""
    draw = np.random.default_rng(0)
    rows = [{"id": f"{i:03d}", "text": " ".join(draw.choice(list("abcdefghij"), words))}
            for i in range(documents)]
    build(folder, rows, tune=0.2, test=0.3)
    return folder
