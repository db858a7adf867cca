"""A local causal language model as the writer.

A token is drawn as argmax of logits / temperature + g with Gumbel noise g, which is a draw from their softmax; each row has its
own generator, so that an answer depends on its own seed and not on the rows beside it.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.store import key_of, stamp
from trainwright.corpus.chat import own_template
from trainwright.families import models
from trainwright.lm.losses import evaluating, most_positions
from trainwright.lm.writing.writer import Request, Sampling, Settings, Stopped


class LocalWriter:
    """The model in ``folder``; its chat template is used where the tokenizer has one.

    Raises:
        UserError: a checkpoint without a tokenizer.
    """

    def __init__(self, folder: Path, settings: Settings, sampling: Sampling, ctx: Context) -> None:
        self.tokenizer = models.load_tokenizer(models.backbone(folder), settings.name)
        if self.tokenizer is None:
            raise UserError(f"{settings.name}: the model in {folder} has no tokenizer, so that it cannot write.")
        self.model: Any = models.load(folder, settings.name).to(ctx.device).eval().requires_grad_(False)
        self.chat, self.most = own_template(self.tokenizer) is not None, most_positions(self.model)
        self.sampling, self.block, self.device = sampling, settings.at_once, ctx.device
        self.identity = f"model {key_of(stamp(folder))}"

    def answer(self, requests: Sequence[Request], seeds: Sequence[int]) -> Iterator[tuple[int, str]]:
        """One batch."""
        prompts = [self._encode(r) for r in requests]
        processors = self._drawing(requests, seeds)
        yield from enumerate(continued(self.model, self.tokenizer, prompts, self.sampling.max_tokens, processors))

    def close(self) -> None:
        """There is nothing to close."""

    def _encode(self, request: Request) -> list[int]:
        prompt = request.prompt
        if self.chat:
            said = [{"role": "user", "content": prompt}]
            prompt = self.tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
        ids: list[int] = self.tokenizer(prompt, add_special_tokens=not self.chat)["input_ids"]
        if not ids:
            raise Stopped(f"the prompt of {request.name!r} is empty.")
        if self.most is not None and len(ids) + self.sampling.max_tokens > self.most:
            raise Stopped(f"the prompt of {request.name!r} has {len(ids):,} tokens, which with max_tokens = "
                          f"{self.sampling.max_tokens:,} for the answer are more than the {self.most:,} positions of the model.")
        return ids

    def _drawing(self, requests: Sequence[Request], seeds: Sequence[int]) -> Any:
        from transformers import LogitsProcessorList
        temperatures = [r.temperature or 0.0 for r in requests]
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        return LogitsProcessorList([lambda seen, logits: drawn(logits, draws, temperatures, self.sampling.top_k)])


def continued(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], new_tokens: int, processors: Any = None) -> list[str]:
    """What a model writes behind prompts, which are padded in front to one length: the likeliest token each time, of the logits
    that the ``processors`` (a ``LogitsProcessorList`` of transformers) make."""
    from transformers import GenerationConfig
    if not prompts:
        return []
    width, device = max(map(len, prompts)), next(model.parameters()).device
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    end = model.generation_config.eos_token_id
    how = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, num_beams=1, pad_token_id=pad,
                           eos_token_id=tokenizer.eos_token_id if end is None else end)
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    with evaluating(model), torch.no_grad():
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=how, logits_processor=processors)
    return [str(tokenizer.decode(row, skip_special_tokens=True)) for row in out[:, width:].tolist()]


def drawn(logits: Tensor, draws: Sequence[torch.Generator], temperatures: Sequence[float], top_k: int) -> Tensor:
    """Logits of which the greatest is a draw from softmax(logits / temperature), of the ``top_k`` likeliest where it is not 0.

    Args:
        logits: (rows, vocabulary).
        draws: a generator for each row.
        temperatures: one for each row; at 0 the likeliest stays the greatest.
    """
    logits = logits.float()
    if 0 < top_k < logits.shape[1]:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    noise = torch.stack([t * torch.empty(logits.shape[1]).exponential_(generator=g).clamp(min=1e-30).log()
                         for t, g in zip(temperatures, draws, strict=True)])
    return logits - noise.to(logits.device)
