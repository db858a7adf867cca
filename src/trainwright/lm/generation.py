"""Generation: the text that a model writes after prompts, and drawing tokens with a generator for each row."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainwright import families
from trainwright.core.errors import UserError


def generate(folder: Path, prompt: str, tokens: int, temperature: float, chat: bool, seed: int) -> str:
    """A model's text behind a prompt; sampling depends on the seed alone."""
    if tokens < 1:
        raise UserError(f"tokens must be 1 or more, not {tokens}.")
    model, tokenizer = families.load(folder, "generate"), families.load_tokenizer(folder, "generate")
    if tokenizer is None:
        raise UserError(f"{folder} has no tokenizer.")
    if not families.is_pretrained(model) or not model.can_generate():  # type: ignore[operator]
        raise UserError(f"{folder}: a {type(model).__name__} does not write text.")
    if chat:
        if tokenizer.chat_template is None:
            raise UserError(f"{folder}: its tokenizer has no chat template; leave out --chat.")
        said = [{"role": "user", "content": prompt}]
        given = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    else:
        given = tokenizer(prompt, return_tensors="pt")
    if not given["input_ids"].shape[1]:
        raise UserError("the prompt is empty and the tokenizer puts nothing in front of it.")
    how = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        out = model.generate(input_ids=given["input_ids"], attention_mask=torch.ones_like(given["input_ids"]),  # type: ignore[operator]
                             max_new_tokens=tokens, pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id, **how)
    behind = chat and not model.config.is_encoder_decoder  # type: ignore[union-attr]   # whose decoder says the answer alone
    text: str = tokenizer.decode(out[0][given["input_ids"].shape[1] if behind else 0:], skip_special_tokens=True)
    return text


def continued(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], new_tokens: int,
              processors: Any = None) -> list[str]:
    """What a causal model writes after each prompt, at most ``new_tokens`` tokens of it.

    Prompts are padded on the left to one length. Each step takes the likeliest token of the logits that ``processors``
    (a ``LogitsProcessorList`` of transformers) return.
    """
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
    with families.evaluating(model), torch.no_grad():
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=how, logits_processor=processors)
    return [str(tokenizer.decode(row, skip_special_tokens=True)) for row in out[:, width:].tolist()]


def drawn(logits: Tensor, draws: Sequence[torch.Generator], temperatures: Sequence[float], top_k: int) -> Tensor:
    """Logits whose argmax is a draw from softmax(logits / temperature), among the ``top_k`` likeliest unless it is 0.

    With Gumbel noise g, the argmax of logits / temperature + g is such a draw. Each row has a generator of its own, so
    a row does not depend on the rows beside it.

    Args:
        logits: (rows, vocabulary).
        draws: a generator for each row.
        temperatures: one for each row; at 0 the likeliest token stays the argmax.
    """
    logits = logits.float()
    if 0 < top_k < logits.shape[1]:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    noise = torch.stack([t * torch.empty(logits.shape[1]).exponential_(generator=g).clamp(min=1e-30).log()
                         for t, g in zip(temperatures, draws, strict=True)])
    return logits - noise.to(logits.device)
