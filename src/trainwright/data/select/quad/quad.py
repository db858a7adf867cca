"""Takes documents from clusters that a bandit finds most influential on a target, without looking at all.

"Harnessing Diversity for Important Data Selection in Pretraining Large Language Models" (Quad, arXiv
2409.16986). Documents are clustered by their embeddings (k-means on unit vectors). Each cluster is an arm;
its documents, in random order, are cut into blocks. Pulling arm i measures the influence on ``from.target``
of a few documents of its next block: with I their mean and o the offset, r = I - o is the reward. The block
is taken if r > 0 and skipped otherwise. Clusters j near to it share the reward:

    T += 1,   n_j += 1,   R_j += r (1 - d_ij / D)     for all j with d_ij < D, the distance of centres,
    score of j = R_j / n_j + alpha sqrt(2 ln T / (n_j + 1)),

and the clusters with the highest score are pulled next. A document's influence is the cosine of its
gradient and the target's gradient times an inverse Hessian, on the attention layers of ``from.model`` (see
``_influence.py``). The authors' code leaves these layers out, or multiplies by the Hessian; this follows
the paper.

Numbers that would fit only one model are relative here: alpha is ``exploration`` times the standard
deviation of the rewards so far, D is ``radius`` times the mean distance of two centres, o is the mean
influence of the first look. The first look is at all clusters, or most would still be unknown when the
budget is spent. The target's gradients are kept as their mean, which is exact, so none is projected at
random. If blocks of positive reward are too few for the budget, the best skipped ones follow, and then the
ends of clusters that are too small to be looked at, so the budget is met exactly. It costs a forward and
backward pass over at most the share ``scored`` of the documents, and three over the target's.

Not for a target that resembles everything: all clusters are then alike.

Errors: no ``from.model`` or ``from.target``, no attention layers, no column of embeddings, a count larger
than the documents that have one, clusters too small, scikit-learn not installed. """
from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainwright.core.method import Curate
from trainwright.core.stage import CORPUS, Role
from trainwright.corpus.selecting import amount, check_amount, keep, settled

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context
    from trainwright.data.select.quad._bandit import Look


class Quad(Curate):
    """Keeps documents of clusters that a bandit finds influential."""

    column: str = "embedding"
    """Column with the embeddings."""
    clusters: int = 100
    """Clusters; fewer if fewer documents differ."""
    arms: int = 5
    """Clusters that are pulled between two updates of the scores."""
    block: int = 50
    """Documents that are taken or skipped at once."""
    scored: float = 0.1
    """Share of a block whose influence is measured, at most 0.2; a block too small for one document is not
    looked at."""
    exploration: float = 0.1
    """Bonus of clusters seldom pulled (alpha), in standard deviations of the reward; 0: always the best so
    far."""
    radius: float = 0.2
    """Distance up to which clusters share a reward (D), in mean distances of two centres."""
    offset: float | None = None
    """What a block's mean influence must exceed; default: the mean over the first look."""
    damping: float = 1.0
    """Damping of the Hessian, in mean eigenvalues of a layer: with far less the ranking departs from the
    exact inverse's."""
    split: Literal["train", "tune"] = "tune"
    """Split of ``from.target`` that is meant."""
    target: int = 512
    """Documents of the target at most, drawn at random."""
    count: int | None = None
    """Documents to keep; or ``share``."""
    share: float | None = None
    """Documents to keep, as a share of those that have an embedding; a tenth by default."""
    length: int = 512
    """Longest piece the model reads, in tokens; shorter if it has fewer positions."""
    batch_tokens: int = 4096
    """Tokens of a forward pass, roughly."""
    needs: ClassVar[tuple[str, ...]] = ("sklearn",)
    roles: ClassVar[dict[str, Role]] = {"model": Role(needed=True), "target": CORPUS._replace(needed=True)}
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "a selection compares all documents before it keeps one"}
    example: ClassVar[dict[str, Any]] = {"clusters": 4, "arms": 1, "block": 10, "scored": 0.2, "target": 8,
                                         "share": 0.5,
                                         "length": 32, "batch_tokens": 512}

    def __post_init__(self) -> None:
        check_amount(self.count, self.share)
        for name in ("clusters", "arms", "block", "target", "length", "batch_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if not 0 < self.scored <= 0.2:
            raise ValueError(f"scored must be above 0 and at most 0.2, not {self.scored}: a bandit looks at "
                             "few")
        if math.floor(self.scored * self.block + 1e-9) < 1:
            raise ValueError(f"scored = {self.scored} of a block of {self.block} is less than one document")
        if min(self.exploration, self.radius) < 0 or self.damping <= 0:
            raise ValueError("exploration and radius must not be negative and damping must be positive, not "
                             f"{self.exploration}, {self.radius} and {self.damping}")

    def depends(self, root: Path) -> str:
        from trainwright.corpus.clusters import need_sklearn
        return need_sklearn(self.name)

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.clusters import kmeans, points, unit
        from trainwright.data.select.quad import _bandit as bandits
        rows = settled(documents, ctx)
        ids, place = points(rows, self.column, self.name)
        said = (place != 0).any(1)                                       # an empty document has zeros
        ids, place = ids[said], place[said]
        budget = amount(len(ids), self.count, self.share, self.name)
        label, centre = kmeans(unit(place), self.clusters, ctx.rng("quad", at=0), self.name)
        queues = bandits.queues(ids, label, len(centre), self.block, self.scored, ctx.seed)
        scores = bandits.Scores(bandits.nearness(centre, self.radius), self.exploration)
        found = bandits.play(queues, scores, self._look(rows, ctx), self.arms, self.offset, budget)
        ctx.note(f"{self.name}/scored", found.measured / len(ids))
        ctx.show(self.name, f"{found.measured:,} of {len(ids):,} documents measured, in {found.seen} of "
                            f"{len(centre)} clusters")
        return keep(rows, found.chosen)

    def _look(self, rows: DataFrame, ctx: Context) -> Look:
        """What measures the influence of documents, by their ids."""
        from trainwright.data.select._target import target_documents
        from trainwright.data.select.quad._influence import Gradients, influences, towards
        from trainwright.lm.scoring import Reader
        gradients = Gradients(Reader.of(ctx.path("model"), ctx, self.name, self.length, self.batch_tokens))
        wanted = target_documents(ctx, self.split, self.target, self.name)
        aim = towards(gradients, wanted, self.damping, self.name)
        return lambda ids: influences(keep(rows, ids), gradients, aim, self.name)
