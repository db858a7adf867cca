"""Small models of several architectures, each with the same weights whenever it is made."""
from __future__ import annotations

from typing import Any

import torch
import transformers as tf

IDS = torch.arange(40).reshape(2, 20) * 7 % 64
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
GPT2: dict[str, Any] = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
ONLY: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 8}, "gemma2": {"head_dim": 8}, "gpt_neox": {"rotary_pct": 0.5}}


def make(kind: str, **settings: Any) -> tf.PreTrainedModel:
    """A causal language model with random weights; biases and norms too, so that nothing hides
    behind zeros and ones."""
    sizes = (
        GPT2
        if kind == "gpt2"
        else {k: v for k, v in SIZES.items() if kind != "gpt_neox" or k != "num_key_value_heads"}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.AutoModelForCausalLM.from_config(
            tf.AutoConfig.for_model(kind, **(sizes | ONLY.get(kind, {}) | settings))
        )
        for parameter in model.parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, mean=0.5, std=0.1)
    return model.eval()


def moved(model: tf.PreTrainedModel, seed: int = 2, size: float = 0.1) -> torch.Tensor:
    """Move everything that is trained, and return the logits of then."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=size)
        return model.eval()(input_ids=IDS).logits
