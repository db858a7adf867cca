"""A model's text behind a prompt."""
from __future__ import annotations

from pathlib import Path

import torch

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
