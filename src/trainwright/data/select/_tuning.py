"""A model tuned on a few documents, only to see what they are worth: its loss on others."""
from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch

from trainwright.core.method import UNTRAINED
from trainwright.corpus.tokens import Document
from trainwright.lm.losses import evaluating, token_losses
from trainwright.lm.scoring import Reader


def tuned_loss(reader: Reader, training: Sequence[Document], target: Sequence[Document], lr: float, epochs: int,
               generator: torch.Generator) -> float:
    """Mean nats a token on ``target`` of a copy of the model that was tuned on ``training``: AdamW without decay, at a constant
    learning rate, without dropout, batches in the order that ``generator`` draws."""
    model = copy.deepcopy(reader.model).requires_grad_(True)
    tuned = replace(reader, model=model)
    batches = [batch for _, batch in tuned.batches(tuned.encode(training))]
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    with evaluating(model), torch.enable_grad():
        for _ in range(epochs):
            for i in torch.randperm(len(batches), generator=generator).tolist():
                optimizer.zero_grad()
                losses = token_losses(model, batches[i], reader.ctx)
                (losses.sum() / (batches[i]["targets"] != UNTRAINED).sum().clamp(min=1)).backward()
                optimizer.step()
    return mean_loss(tuned, target)


def mean_loss(reader: Reader, documents: Sequence[Document]) -> float:
    """Nats a token over all documents; NaN where there is nothing to predict."""
    nats, tokens = 0.0, 0
    with torch.no_grad(), evaluating(reader.model):
        for _, batch in reader.batches(reader.encode(documents)):
            nats += float(token_losses(reader.model, batch, reader.ctx).double().sum())
            tokens += int((batch["targets"] != UNTRAINED).sum())
    return nats / tokens if tokens else float("nan")
