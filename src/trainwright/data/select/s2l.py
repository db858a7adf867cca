"""Small to large: samples alike from clusters of documents on which a small model's loss fell alike.

"SmallToLarge (S2L): Scalable Data Selection for Fine-tuning Large Language Models by Summarizing Training
Trajectories of Small Models" (arXiv 2403.07384). Left out: that the authors' code passes over clusters of one
or two documents at first, since the paper's rule has it not. The checkpoints of a small proxy,
``from.models`` in order of training, give each document i its trajectory of losses (mean nats a token, in
evaluation mode)

    v_i = (loss_i(c_1), ..., loss_i(c_T)),

which Euclidean k-means puts into K clusters. They are visited from the smallest on: with a budget B left
and K - k clusters to come, cluster k gives

    min(|C_k|, floor(B / (K - k)))

of its documents, drawn at random, and B shrinks by them. Small clusters are thus taken whole, their unused
share goes to the larger ones, and the budget is met exactly. The selection may be for a model far larger
than the proxy. The checkpoints are snapshots of one run of it:

    [[stage]]
    name = "proxy"
    snapshots = [0.25, 0.5, 0.75]

    [[stage]]
    name = "chosen"
    kind = "corpus"
    from = { data = "corpus", models = ["proxy@0.25", "proxy@0.5", "proxy@0.75", "proxy"] }
    methods = [{ use = "s2l" }]

In a conversation only what the assistant says counts, if the proxy's chat template marks it. With
``by_domain`` the budget is split over the domains first, in the same way, and clusters are made within
each, as the authors' code does with the sources of its data.

Not with few clusters of similar documents: it then hardly differs from a random choice.

Errors: fewer than two models, one without a tokenizer, a loss that is not finite, a count larger than the
documents that have a loss, scikit-learn not installed. A document with nothing to predict is never kept.
"""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwright.core.method import Curate
from trainwright.core.stage import Role
from trainwright.corpus.selecting import amount, check_amount, columns, keep, settled

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context


class S2l(Curate):
    """Keeps as many documents of each cluster of loss trajectories."""

    clusters: int = 100
    """Clusters (K); fewer if fewer trajectories differ."""
    by_domain: bool = False
    """Whether to split the budget over the domains first, and to cluster within each."""
    count: int | None = None
    """Documents to keep; or ``share``."""
    share: float | None = None
    """Documents to keep, as a share of those that have a loss; a tenth by default."""
    length: int = 512
    """Longest piece a model reads, in tokens; shorter if it has fewer positions."""
    batch_tokens: int = 8192
    """Tokens of a forward pass, roughly."""
    needs: ClassVar[tuple[str, ...]] = ("sklearn",)
    roles: ClassVar[dict[str, Role]] = {"models": Role(many=True, needed=True)}
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "a selection compares all documents before it keeps one"}
    example: ClassVar[dict[str, Any]] = {"clusters": 6, "share": 0.5, "by_domain": True, "length": 32,
                                         "batch_tokens": 512}

    def __post_init__(self) -> None:
        check_amount(self.count, self.share)
        if min(self.clusters, self.length, self.batch_tokens) < 1:
            raise ValueError(f"clusters, length and batch_tokens must be positive, not {self.clusters}, "
                             f"{self.length} and {self.batch_tokens}")

    def depends(self, root: Path) -> str:
        from trainwright.corpus.clusters import need_sklearn
        return need_sklearn(self.name)

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.data.select._panel import panel
        rows = settled(documents, ctx)
        what = "the checkpoints of a small model in order of training"
        seen = panel(rows, ctx, self.name, what, self.length, self.batch_tokens)
        budget = amount(len(seen.ids), self.count, self.share, self.name)
        domains, member = np.unique(self._domains(rows, seen.ids), return_inverse=True)
        chosen: list[str] = []
        for number, quota in enumerate(quotas(np.bincount(member), budget)):
            inside = member == number
            chosen += self._draw(seen.ids[inside], seen.loss[inside], int(quota), str(domains[number]), ctx)
        return keep(rows, chosen)

    def _domains(self, rows: DataFrame, ids: NDArray[np.object_]) -> NDArray[np.str_]:
        if not self.by_domain:
            return np.full(len(ids), "")
        table = columns(rows, "id", "domain")
        told = dict(zip(table["id"].to_pylist(), table["domain"].to_pylist(), strict=True))
        return np.array([told[name] for name in ids], dtype=str)

    def _draw(self, ids: NDArray[np.object_], trajectories: NDArray[np.float64], budget: int, domain: str,
              ctx: Context) -> list[str]:
        from trainwright.corpus.clusters import kmeans
        from trainwright.corpus.tokens import uniform
        label, centre = kmeans(trajectories, self.clusters, ctx.rng(f"s2l/{domain}", at=0), self.name)
        order = np.lexsort((np.array([uniform(name, f"s2l/{ctx.seed}") for name in ids]), label))
        sizes = np.bincount(label, minlength=len(centre))
        place = np.arange(len(ids)) - (np.cumsum(sizes) - sizes)[label[order]]
        return ids[order[place < quotas(sizes, budget)[label[order]]]].tolist()


def quotas(sizes: NDArray[np.int64], budget: int) -> NDArray[np.int64]:
    """How many to take of groups of these sizes: ``budget`` in all (at most the sum of them), as evenly as
    can be."""
    taken = np.zeros_like(sizes)
    for visited, group in enumerate(np.argsort(sizes, kind="stable")):
        taken[group] = min(sizes[group], budget // (len(sizes) - visited))
        budget -= taken[group]
    return taken
