"""Texts that the model writes, kept for the report, and how varied they are.

Each prompt is continued once, with randomness that depends only on the seed. ``distinct_2`` is the number
of distinct pairs of adjacent tokens over all such pairs in the samples: near 0 where the model repeats
itself.

Errors: no prompt; a stage without a tokenizer; ``chat`` with a tokenizer that has no template; a prompt
that fills all positions.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Evaluator
from trainwright.lm.losses import evaluating, most_positions


class Samples(Evaluator):
    """Keeps a text for each prompt and measures ``sample_tokens`` (mean length) and ``distinct_2``."""

    prompts: tuple[str, ...]
    """Texts to continue."""
    new_tokens: int = 60
    """Most tokens to write."""
    temperature: float = 0.8
    """Temperature of sampling; 0 always takes the likeliest token."""
    chat: bool = False
    """Put each prompt through the chat template, as a user's turn."""
    makes: ClassVar[tuple[str, ...]] = ()
    example: ClassVar[dict[str, Any]] = {"prompts": ["The"], "new_tokens": 4}

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("prompts names no prompt")
        if self.new_tokens < 1 or self.temperature < 0:
            raise ValueError(
                f"new_tokens must be positive and temperature 0 or more, not {self.new_tokens} and "
                f"{self.temperature}"
            )

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        tokenizer = ctx.tokenizer
        if tokenizer is None:
            raise UserError("samples: the stage has no tokenizer to read the prompts with.")
        written = []
        for i, prompt in enumerate(self.prompts):
            ids = self.encode(tokenizer, prompt).to(next(model.parameters()).device)
            out = self.write(model, ids, tokenizer, ctx.rng(f"samples/{i}", at=0).initial_seed())[
                len(ids) :
            ].tolist()
            written.append(out)
            ctx.show(
                f"sample/{i}",
                (prompt + "\n" if self.chat else prompt) + tokenizer.decode(out, skip_special_tokens=True),
            )
        pairs = [pair for out in written for pair in pairwise(out)]
        return {
            "sample_tokens": sum(map(len, written)) / len(written),
            "distinct_2": len(set(pairs)) / max(1, len(pairs)),
        }

    def encode(self, tokenizer: Any, prompt: str) -> torch.Tensor:
        if self.chat:
            if tokenizer.chat_template is None:
                raise UserError("samples: chat = true, but the tokenizer has no chat template.")
            said = [{"role": "user", "content": prompt}]
            prompt = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(prompt, add_special_tokens=not self.chat, return_tensors="pt")["input_ids"][0]
        if not len(ids):
            raise UserError("samples: a prompt is empty and the tokenizer puts nothing in front of it.")
        return ids

    def write(self, model: nn.Module, ids: torch.Tensor, tokenizer: Any, seed: int) -> torch.Tensor:
        most = most_positions(model)
        room = self.new_tokens if most is None else min(self.new_tokens, most - len(ids))
        if room < 1:
            raise UserError(
                f"samples: a prompt of {len(ids)} tokens leaves no room in the {most} positions of the model."
            )
        how = (
            {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        )
        devices = [ids.device.index or 0] if ids.device.type == "cuda" else []
        with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            return model.generate(
                input_ids=ids[None],
                attention_mask=torch.ones_like(ids)[None],
                max_new_tokens=room,
                pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
                **how,
            )[0]
