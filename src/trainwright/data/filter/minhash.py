"""Drops near-duplicates: documents that share most of their runs of words, found by MinHash and banding.

"On the resemblance and containment of documents" (Broder, 1997); for language models "Deduplicating Training Data Makes Language
Models Better" (arXiv 2107.06499). With S(d) the set of runs of ``ngram`` words of a document, and h_1 … h_k random orders of all
runs,

    J(a, b) = |S(a) and S(b)| / |S(a) or S(b)|        P[ min h_i(S(a)) = min h_i(S(b)) ] = J(a, b)
    P[ a and b agree in one of b bands of r hashes ] = 1 - (1 - J^r)^b

Two documents that agree in a band are a candidate pair. b and r follow from ``threshold``: the pair with the smallest area of
false negatives above it and of false positives below it, where candidates are verified mostly the former. Candidates are then
compared by their true J (``verify``). In a band each document is compared with the first and with the nearest before it that
agree with it, not with all, so that the work grows with the documents and not with their square. What hangs together by pairs,
be it through others, is a cluster, of which one document stays: the first by id, or the one with the highest ``prefer``.

Case, punctuation and space make no difference; a character of a script without spaces counts as a word; a document without a word
is left alone. In memory are ids, one band and the candidate pairs; hashes lie in the stage's scratch.

Not for copies that are to count as such (a licence in each file, templates of code): they go, too. Not across ``from.data`` and
what is kept back of it: see ``decontaminate``. Errors: no document, an id that occurs twice, no
such column as ``prefer``, NaN in it.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from trainwright.core.bench import Bench
from trainwright.core.errors import UserError
from trainwright.core.method import Curate

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context

CARE = 0.98
"""Weight of pairs that are missed against pairs that are met in vain, where those are sorted out afterwards."""


class Minhash(Curate):
    """Drops all but one of each cluster of near-duplicates."""

    threshold: float = 0.7
    """Share of common runs of words (Jaccard) from which on two documents are duplicates."""
    ngram: int = 3
    """Words in a run. One word in thirty replaced leaves J = 0.82 with runs of 3 and 0.71 with runs of 5."""
    hashes: int = 128
    """Hash functions; more find pairs near the threshold more surely."""
    verify: bool = True
    """Whether the true J of each candidate pair is asked for; else agreement in a band is enough."""
    prefer: str = ""
    """Column of numbers whose highest is kept of a cluster; default, and among equals: the first by id."""
    example: ClassVar[dict[str, Any]] = {"hashes": 32}
    bench: ClassVar[Bench | None] = Bench(
        suite="select", at="chosen", drop=("random_subset",), add=({"use": "minhash"}, {"use": "random_subset", "share": 0.3}),
        claim="models trained on deduplicated text emit memorized text ten times less often and need fewer steps for the same or "
              "a better accuracy",
        scale="the paper's models see duplicates thousands of times, in up to 350 GB of text")

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be above 0 and at most 1, not {self.threshold}")
        if self.ngram < 1 or self.hashes < 1:
            raise ValueError(f"ngram and hashes must be positive, not {self.ngram} and {self.hashes}")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.passes import without
        from trainwright.corpus.selecting import settled
        from trainwright.data.filter import _near
        rows = settled(documents, ctx)
        bands, per_band = _near.banding(self.threshold, self.hashes, CARE if self.verify else 0.5)
        found = _near.Signatures.of(rows, ctx, self.ngram, bands, per_band, self.prefer, self.name)
        if not len(found.ids):
            raise UserError("minhash has nothing to compare: no document came in.")
        pairs = found.pairs()
        real = _near.verified(rows, ctx, found, pairs, self.ngram, self.threshold) if self.verify else pairs
        cluster = _near.clusters(real, len(found.ids))
        gone = found.ids.take(_near.others(cluster))
        for name, value in (("candidate_pairs", len(pairs)), ("pairs", len(real)), ("dropped", len(gone))):
            ctx.note(f"{self.name}/{name}", value)
        ctx.show(self.name, f"{len(gone):,} of {len(found.ids):,} documents dropped as near-duplicates; {len(pairs):,} candidate "
                            f"pairs by {bands} bands of {per_band} hashes, {len(real):,} of them real")
        return without(rows, gone)
