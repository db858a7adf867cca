"""Small language models of three families and a stage that trains them, for tests of methods that change how
a model trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.loop import Train
from trainwright.core.method import Batch, Data, Objective, State

FAMILIES = ("llama", "qwen2", "gpt2")
"""nn.Linear without biases, nn.Linear with some, Conv1D with all of them and a tied head."""
VOCABULARY = 64


def build(family: str = "llama", width: int = 32, layers: int = 2) -> tf.PreTrainedModel:
    """A model with fresh weights; two calls give equal ones."""
    if family == "gpt2":
        config = tf.GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=width,
            n_layer=layers,
            n_head=4,
            n_positions=64,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    else:
        config = tf.AutoConfig.for_model(
            family,
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=width * 3 // 2,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=False,
        )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return tf.AutoModelForCausalLM.from_config(config)


class Counting(Data):
    """Rows that count up in steps of one to seven, from anywhere."""

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        draw = torch.randint(1, 8, (2, 8, 1), generator=ctx.rng("counting"))
        ids = (draw[0] * 9 + draw[1] * torch.arange(16)) % VOCABULARY
        return {"input_ids": ids[ctx.rows(8)]}


class Next(Objective):
    """Cross-entropy of the token that follows."""

    def count(self, batch: Batch) -> float:
        return batch["input_ids"][:, 1:].numel()

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        logits = model(input_ids=batch["input_ids"]).logits
        return nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), batch["input_ids"][:, 1:], reduction="none"
        )


def train(model: nn.Module, *methods: Any, steps: int = 12, seed: int = 0) -> Train:
    """A stage, built: counting rows, the next token, and the methods given."""
    run = Train(model, [Counting(), Next(), *methods], steps, ctx=Context(seed=seed))
    run.build()
    return run
