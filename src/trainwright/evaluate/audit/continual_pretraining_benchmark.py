"""What a model forgets and what it can use while it reads many domains one after another.

"Investigating Continual Pretraining in Large Language Models: Insights and Implications" (arXiv 2402.17400).
A model is trained on domains 1 .. N in turn, and after each of them (row i) its loss on the test documents of
every domain is measured: the matrix L[i, j], with L[0, j] of the model before the stream, in nats per token.

    stream_current          = mean_j L[j, j]                      right after each domain was read
    stream_last             = mean_j L[N, j]                      at the end
    backward_transfer       = mean_(j < N) (L[N, j] - L[j, j])    above 0: forgotten
    forward_transfer        = mean_i mean_(j > i) (L[i, j] - L[0, j])    below 0: an earlier domain helped
    stream_against_alone    = mean_j (L[j, j] - A[j])             below 0: the stream helped

and the same after each row, ``backward_transfer/STAGE`` and ``forward_transfer/STAGE``. A[j] is the loss of
the model before the stream, trained on domain j alone with the same tokens and schedule (``from.alone``). All
means are of losses, not of perplexities, which order models otherwise. A heat-map of L[i, j] - L[0, j] stands
on the page of the run.

``from.models`` is the model before the stream, ``from.stream`` the models after each domain, in order, such
as the stages of a recipe or the rounds of a ``repeat``. Domains must share no text; one order of them is no
evidence on orders: take several. The paper has 159 domains of M2D2 and compares orders by similarity;
choosing an order is left out.

Not for streams whose stages differ in tokens or schedule: then these are compared, not the domains.

Errors: as many domains as models in the stream are needed; a domain that the corpus does not have.
"""
from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from torch import nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Evaluator
from trainwright.core.stage import MODELS, Role
from trainwright.evaluate.audit._heat import heat_map
from trainwright.evaluate.audit._stream import Held, known_domains, loaded


class ContinualPretrainingBenchmark(Evaluator):
    """Measures ``loss/DOMAIN`` before the stream, ``loss_after_I/DOMAIN`` after its I-th domain, and what of
    it is transfer."""

    domains: tuple[str, ...] = ()
    """The domains of the stream, in its order; by default all of the corpus, in its own."""
    held: Held = Held()
    """What is measured."""
    roles: ClassVar[dict[str, Role]] = {"stream": MODELS._replace(needed=True), "alone": MODELS}
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    makes: ClassVar[tuple[str, ...]] = ("loss/*", "loss_after_*/*", "stream_*", "backward_transfer*",
                                        "forward_transfer*")
    example: ClassVar[dict[str, Any]] = {"held": {"tokens": 100, "length": 32, "batch_size": 4}}

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        domains = known_domains(self.domains, ctx, self.name)
        rows, names = [self.held.losses(model, domains, ctx)], list[str]()
        for role in ("stream", "alone"):
            many = len(ctx.inputs.get(role, []))
            if many not in (0, len(domains)):
                raise UserError(f"continual_pretraining_benchmark: from.{role} names {many} models for "
                                f"{len(domains)} domains ({', '.join(domains)}): one for each, in order.")
        for name, after in loaded("stream", ctx, self.name):
            rows.append(self.held.losses(after, domains, ctx))
            names.append(name)
        matrix = np.array([[row[domain] for domain in domains] for row in rows])
        out = {f"loss/{domain}": loss for domain, loss in rows[0].items()}
        for i, row in enumerate(rows[1:], 1):
            out |= {f"loss_after_{i}/{domain}": loss for domain, loss in row.items()}
        if names:
            out |= transfers(matrix, names)
            self._draw(matrix, names, domains, ctx)
        alone = [self.held.losses(one, (domain,), ctx)[domain]
                 for domain, (_, one) in zip(domains, loaded("alone", ctx, self.name), strict=False)]
        if names and alone:
            out["stream_against_alone"] = float((np.diagonal(matrix[1:]) - alone).mean())
        return out

    def _draw(self, matrix: np.ndarray, names: list[str], domains: tuple[str, ...], ctx: Context) -> None:
        change = matrix[1:] - matrix[0]
        rows = [", ".join(f"{d} {x:+.3f}" for d, x in zip(domains, row, strict=True)) for row in change]
        told = "; ".join(f"after {name}: {row}" for name, row in zip(names, rows, strict=True))
        ctx.picture("stream", heat_map(change, [f"after {n}" for n in names], domains,
                                       "Loss against before the stream, nats per token"),
                    f"How much the loss on each domain changed since before the stream. {told}")


def transfers(matrix: np.ndarray, names: list[str]) -> dict[str, float]:
    """The numbers of a matrix of losses [1 + stages, domains], its first row before the stream."""
    many = len(names)
    own = np.array([matrix[j + 1, j] for j in range(many)])
    out = {"stream_current": float(own.mean()), "stream_last": float(matrix[many].mean())}
    forward = []
    for i in range(1, many + 1):
        if i > 1:
            lost = float((matrix[i, :i - 1] - own[:i - 1]).mean())
            out[f"backward_transfer/{names[i - 1]}"] = out["backward_transfer"] = lost
        if i < many:
            forward.append(float((matrix[i, i:] - matrix[0, i:]).mean()))
            out[f"forward_transfer/{names[i - 1]}"] = forward[-1]
    return out | ({"forward_transfer": sum(forward) / len(forward)} if forward else {})
