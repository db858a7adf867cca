"""Models whose losses are known: they give each letter's tokens a probability of their own, whatever came
before."""
from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from trainwright import families
from trainwright.check import tiny
from trainwright.core.context import Context


def checkpoint(folder: Path, shares: dict[str, float]) -> Path:
    """A tiny Llama that gives the tokens made of some letters that share of the probability; what is left
    goes to all others."""
    model, tokenizer = tiny.model(), tiny.tokenizer()
    texts = [token.strip("Ġ") for token in tokenizer.convert_ids_to_tokens(range(tiny.VOCABULARY))]
    chance = torch.zeros(tiny.VOCABULARY)
    for letters, share in shares.items():
        inside = torch.tensor([bool(text) and set(text) <= set(letters) for text in texts])
        chance[inside] = share / inside.sum()
    rest = chance == 0
    chance[rest] = (1 - sum(shares.values())) / rest.sum()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # so that every hidden state is a row of ones
            parameter.fill_(float("norm" in name or "embed" in name))
        head = model.lm_head.weight
        head.copy_(chance.log()[:, None].expand_as(head) / head.shape[1])
    folder.mkdir(parents=True)
    families.save(model, folder, tokenizer)
    return folder


def written(kind: str, letters: str, many: int, **more: Any) -> list[dict[str, Any]]:
    """Documents of twenty words, out of twelve, made of these letters."""
    draw = random.Random(kind)
    words = ["".join(draw.choices(letters, k=4)) for _ in range(12)]
    return [{"id": f"{kind}/{i:03d}", "text": " ".join(draw.choices(words, k=20)), "domain": kind, **more}
            for i in range(many)]


def context(folder: Path, **inputs: Any) -> Context:
    """What a corpus stage gives a method."""
    folder.mkdir(exist_ok=True)
    return Context(seed=1, inputs=inputs, root=folder, folder=folder)


def kept(documents: Any) -> list[str]:
    """Ids of the rows, sorted."""
    return sorted(row["id"] for row in documents.to_pylist())
