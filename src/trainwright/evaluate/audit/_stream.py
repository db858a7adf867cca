"""Models that come one after another (a stream of stages, snapshots of one), measured on every domain."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.tokens import open_corpus
from trainwright.evaluate.held_out import HeldOut


@dataclass(frozen=True, kw_only=True)
class Held:
    """Which held-out text models are measured on: settings that several methods share."""

    split: Literal["tune", "test"] = "test"
    """Which documents of the corpus."""
    tokens: int = 50_000
    """About how many tokens of each domain."""
    length: int = 512
    """Tokens that the model sees at once; fewer if it has fewer positions."""
    batch_size: int = 16
    """Rows of a forward pass."""

    def __post_init__(self) -> None:
        self.held_out(())

    def held_out(self, domains: tuple[str, ...]) -> HeldOut:
        """The evaluator."""
        return HeldOut(domains=domains, split=self.split, tokens=self.tokens, length=self.length,
                       batch_size=self.batch_size)

    def losses(self, model: nn.Module, domains: tuple[str, ...], ctx: Context) -> dict[str, float]:
        """Nats per token, by domain."""
        with torch.no_grad():
            found = self.held_out(domains).measure(model, ctx)
        return {domain: found[f"loss/{domain}"] for domain in domains}


def known_domains(domains: Sequence[str], ctx: Context, who: str) -> tuple[str, ...]:
    """The domains that a setting names, or all of the corpus'.

    Raises:
        UserError: the corpus does not have one.
    """
    every = open_corpus(ctx.path("data")).domains
    for domain in domains:
        if domain not in every:
            raise UserError(f"{who}: the corpus has no domain {domain!r}; it has {', '.join(every)}.")
    return tuple(domains) or every


def loaded(role: str, ctx: Context, who: str) -> Iterator[tuple[str, nn.Module]]:
    """The models that ``from`` names in a role, with their names, one at a time in memory."""
    folders = ctx.inputs.get(role, [])
    names = ctx.names.get(role) or [folder.name for folder in folders]
    for name, folder in zip(names, folders, strict=True):
        yield name, families.load(folder, who).to(ctx.device).eval()
