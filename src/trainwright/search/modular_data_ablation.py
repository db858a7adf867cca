"""Modular data ablation: rank mixtures of data by averaging the weights of models trained on single parts.

"Scalable Data Ablation Approximations for Language Models through Modular Training and Merging" (arXiv
2410.15661). The model under evaluation is the seed; the training documents are divided by ``field``
(``domain``, ``source``, or a key of their metadata). A copy of the seed continues on each part, all with
the same settings: ``tokens`` tokens, AdamW, a rate that decays linearly to zero. For a mixture of ``size``
parts
    proxy    = the loss of the uniform average of its parts' weights,
    trained  = the loss of one copy that continues on all of its parts, with as many tokens of each,
both on the held-out documents of ``domains``. k trainings give the proxies of all mixtures. With
``verify`` the mixtures are trained as well, and ``rank_correlation`` (Spearman) says how well the proxies
rank them, next to that of the mean of the single models' losses (``naive_rank_correlation``), which the
average should beat. Its 95 % interval is Fisher's z with a standard error of sqrt((1 + rho^2 / 2) /
(mixtures - 3)); mixtures share parts, so it is somewhat too narrow. With fewer than four mixtures it is -1
to 1.

Only the ranking is claimed: a proxy is higher than the loss of training. Parts have equal size, since the
average is uniform (those with fewer tokens are left out; of the others the ``parts`` largest are taken).
It trains within an evaluation, k runs and as many again as there are mixtures, whose models are discarded:
put it into an evaluate stage.
Do not use it across seeds or models: averaging weights with different starting points is meaningless.

Errors: too few parts with enough tokens; no such field; a model with adapters in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainwright import families
from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Evaluator
from trainwright.corpus.tokens import Documents, open_corpus
from trainwright.evaluate.held_out import HeldOut
from trainwright.lm.losses import most_positions, token_losses
from trainwright.lm.metadata import metadata_of
from trainwright.lm.rows import SHARD


class ModularDataAblation(Evaluator):
    """Measures ``proxy/A+B`` for each mixture, and how well the proxies rank trained mixtures."""

    field: str = "source"
    """What divides the documents: ``domain``, ``source``, or a key of their metadata."""
    parts: int = 5
    """Most parts."""
    size: int = 2
    """Parts in a mixture."""
    tokens: int = 20_000
    """Tokens of each part."""
    verify: bool = True
    """Whether to train the mixtures too."""
    domains: tuple[str, ...] = ()
    """Domains of the held-out documents; by default all of the corpus."""
    split: Literal["tune", "test"] = "tune"
    """Which documents to measure."""
    measured: int = 10_000
    """About how many tokens of each domain to measure."""
    lr: float = 1e-3
    """Peak learning rate."""
    length: int = 256
    """Tokens that the model sees at once; fewer if it has fewer positions."""
    batch_size: int = 8
    """Pieces of documents in a step."""
    makes: ClassVar[tuple[str, ...]] = ("proxy/*", "trained/*", "*rank_correlation*")
    example: ClassVar[dict[str, Any]] = {
        "field": "domain",
        "tokens": 120,
        "measured": 60,
        "length": 32,
        "domains": ["prose"],
    }

    def __post_init__(self) -> None:
        for name in ("size", "tokens", "measured", "lr", "length", "batch_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.parts <= self.size:
            raise ValueError(
                f"parts must be more than size: {self.parts} parts make no mixtures of {self.size} to compare"
            )

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        parts, seed = (
            self.parted(ctx),
            {n: sharding.full(p.detach()).clone() for n, p in model.named_parameters()},
        )
        copy = families.create(model.config, 0, self.name).to(ctx.device).eval()
        if {n for n, _ in copy.named_parameters()} != seed.keys():
            raise UserError(
                f"{self.name} goes on with copies of the plain model, and this one has other parameters: "
                "measure it in an evaluate stage, where it is whole."
            )
        single = {name: self.trained(copy, seed, found, name, ctx) for name, found in parts.items()}
        alone = {name: self.loss(copy, weights, ctx) for name, weights in single.items()}
        proxies, others, naive = dict[str, float](), dict[str, float](), list[float]()
        for names in combinations(parts, self.size):
            mixture = "+".join(names)
            proxies[mixture] = self.loss(copy, averaged([single[n] for n in names]), ctx)
            naive.append(float(np.mean([alone[n] for n in names])))
            if self.verify:
                union = joined([parts[n] for n in names])
                others[mixture] = self.loss(copy, self.trained(copy, seed, union, mixture, ctx), ctx)
        out = {f"proxy/{n}": v for n, v in proxies.items()} | {f"trained/{n}": v for n, v in others.items()}
        if self.verify:
            rho, low, high = rank_correlation(list(proxies.values()), list(others.values()))
            out |= {
                "rank_correlation": rho,
                "rank_correlation_low": low,
                "rank_correlation_high": high,
                "naive_rank_correlation": rank_correlation(naive, list(others.values()))[0],
            }
        return out

    def parted(self, ctx: Context) -> dict[str, Documents]:
        """The documents of each part, with ``tokens`` tokens in all."""
        folder = ctx.path("data")
        found, known = open_corpus(folder).select("train"), metadata_of(folder, self.field)
        which = known.which[np.searchsorted(known.starts, found.shard * SHARD + found.offset)]
        has = {name: int((found.length - 1)[which == i].sum()) for i, name in enumerate(known.said)}
        names = [n for n in sorted(has, key=lambda n: -has[n]) if has[n] >= self.tokens][: self.parts]
        if len(names) <= self.size:
            raise UserError(
                f"{self.name}: {len(names)} parts by {self.field!r} have {self.tokens:,} tokens, and to "
                f"compare mixtures of {self.size} takes {self.size + 1} (the largest have "
                f"{sorted(has.values())[::-1][:4]})."
            )
        order = torch.randperm(len(found), generator=ctx.rng("modular_data_ablation/documents", at=0)).numpy()
        return {
            n: cut(part(found, order[which[order] == known.said.index(n)]), self.tokens)
            for n in sorted(names)
        }

    def trained(
        self, copy: nn.Module, seed: dict[str, Tensor], found: Documents, name: str, ctx: Context
    ) -> dict[str, Tensor]:
        """The weights after training from the seed on these documents, once each."""
        put(copy, seed)
        copy.requires_grad_(True)
        quiet, corpus = Context(device=ctx.device), open_corpus(ctx.path("data"))
        source = HeldOut(batch_size=self.batch_size)
        batches = list(source.batches(corpus, found, corpus.domains[0], self.seen(copy), quiet))
        optimizer = torch.optim.AdamW(copy.parameters(), lr=self.lr, betas=(0.9, 0.95), weight_decay=0.0)
        order = torch.randperm(
            len(batches), generator=ctx.rng(f"modular_data_ablation/{name}", at=0)
        ).tolist()
        with torch.enable_grad():
            for step, i in enumerate(order):
                optimizer.param_groups[0]["lr"] = self.lr * (1 - step / len(order))
                optimizer.zero_grad()
                losses = token_losses(copy, batches[i], quiet)
                (losses.sum() / (batches[i]["targets"] != UNTRAINED).sum().clamp(min=1)).backward()
                optimizer.step()
        return {n: p.detach().clone() for n, p in copy.requires_grad_(False).named_parameters()}

    def seen(self, model: nn.Module) -> int:
        """Tokens of a piece."""
        return min(self.length, most_positions(model) or self.length)

    def loss(self, copy: nn.Module, weights: dict[str, Tensor], ctx: Context) -> float:
        """Mean loss over the held-out domains with these weights."""
        put(copy, weights)
        measure = HeldOut(
            domains=self.domains,
            split=self.split,
            tokens=self.measured,
            length=self.length,
            batch_size=self.batch_size,
        )
        told = measure.measure(copy, Context(device=ctx.device, inputs=ctx.inputs))
        return float(np.mean([v for n, v in told.items() if n.startswith("loss/")]))


ARRAYS = ("id", "domain", "shard", "offset", "length", "bytes", "trained")


def put(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy weights into a model."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(weights[name])


def averaged(models: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The uniform average of weights, in float32 at least."""
    return {
        n: torch.stack([m[n].to(torch.promote_types(m[n].dtype, torch.float32)) for m in models])
        .mean(0)
        .to(first.dtype)
        for n, first in models[0].items()
    }


def part(found: Documents, which: NDArray[np.int64]) -> Documents:
    """Some of the documents, in this order."""
    return Documents(*(getattr(found, name)[which] for name in ARRAYS))


def cut(found: Documents, tokens: int) -> Documents:
    """The first documents with ``tokens`` predictions in all, of which there must be enough; the last one is
    cut."""
    many = int(np.searchsorted((found.length - 1).cumsum(), tokens)) + 1
    out = part(found, np.arange(many))
    out.length[-1] -= int((out.length - 1).sum()) - tokens
    return out


def joined(parts: Sequence[Documents]) -> Documents:
    """The documents of all parts."""
    return Documents(*(np.concatenate([getattr(one, name) for one in parts]) for name in ARRAYS))


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Spearman's rho and its 95 % interval by Fisher's z: 0 if one side is constant, -1 to 1 below four
    pairs."""
    from scipy.stats import spearmanr

    if min(np.ptp(a), np.ptp(b)) == 0:
        return 0.0, -1.0, 1.0
    rho = float(spearmanr(a, b).statistic)
    if len(a) < 4:
        return rho, -1.0, 1.0
    z, spread = (
        math.atanh(max(-1 + 1e-12, min(1 - 1e-12, rho))),
        1.96 * math.sqrt((1 + rho * rho / 2) / (len(a) - 3)),
    )
    return rho, math.tanh(z - spread), math.tanh(z + spread)
