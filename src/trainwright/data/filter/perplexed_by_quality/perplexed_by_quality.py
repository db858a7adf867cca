"""Drops documents that are too likely under an n-gram model of harmful text: low perplexity goes.

"Perplexed by Quality: A Perplexity-based Method for Adult and Harmful Content Detection in Multilingual
Heterogeneous Web Data" (arXiv 2212.10440). The model is estimated on harmful text alone (modified
Kneser-Ney, as in KenLM) or read from an ARPA file. With n words and line ends in a document,

    perplexity(d) = 10 ^ ( - 1/n sum log10 p(w_i | the ``order`` - 1 words before) )
    drop d if perplexity(d) <= threshold

Lines are sentences, case and punctuation are ignored, unknown words have the probability of <unk>. Without
``threshold``, it is the valley between the two modes of log10 perplexity over the incoming documents. A
distribution without a clear valley is refused, since any threshold would then be a mere quantile.
``column`` keeps the perplexity of each document, so that the threshold can be judged; check it before you
trust it. Different languages need models and thresholds of their own. Of the paper only the rule is used;
order and smoothing are KenLM's defaults.

Not against very short or garbled documents: they are unlikely under any model and pass. The log says how
many have fewer than ``order`` words. A document without words has null and stays. The usual filter, with a
model of *clean* text, works the other way round: it drops high perplexity.

Errors: neither ``harmful`` nor ``model``, or both; no word in the former, no ARPA in the latter; no valley.
"""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from trainwright.core.errors import UserError
from trainwright.core.method import Curate
from trainwright.core.settings import FilePath

if TYPE_CHECKING:
    import pyarrow as pa
    from daft import DataFrame

    from trainwright.core.context import Context
    from trainwright.data.filter.perplexed_by_quality._arpa import Model
    from trainwright.data.filter.perplexed_by_quality._kneser_ney import Floats


class PerplexedByQuality(Curate):
    """Drops what a model of harmful text finds too likely."""

    harmful: tuple[str, ...] = ()
    """Files, folders, globs with harmful text to estimate the model on; relative ones are read from the
    recipe's folder."""
    model: FilePath = ""
    """An n-gram model in the ARPA format instead (``.arpa``, also ``.gz``)."""
    threshold: float | None = None
    """Perplexity up to which a document is dropped; default: the valley between the two modes."""
    order: int = 5
    """Words in the longest n-grams of the estimated model."""
    field: str = "text"
    """Column that holds the text, in files of ``harmful`` that are tables."""
    drop: bool = True
    """Whether to drop documents; otherwise all stay, and ``column`` says which are bad."""
    column: str = "harmful_perplexity"
    """Name of the column."""
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "the threshold is a valley between all documents"}
    example: ClassVar[dict[str, Any]] = {"harmful": [__file__], "threshold": 200.0, "order": 3}

    def __post_init__(self) -> None:
        if bool(self.harmful) == bool(self.model):
            raise ValueError("say either harmful (files to estimate the model on) or model (an ARPA file)")
        if self.order < 1:
            raise ValueError(f"order must be positive, not {self.order}")
        if self.threshold is not None and not self.threshold > 0:
            raise ValueError(f"threshold is a perplexity, above 0, not {self.threshold}")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        import pyarrow as pa

        from trainwright.corpus.passes import without
        from trainwright.corpus.provenance import because
        from trainwright.corpus.selecting import attach, settled
        from trainwright.data.filter.perplexed_by_quality._valley import valley
        model = self._read(ctx)
        rows = settled(documents, ctx)
        ids, values, short = self._perplexities(rows, model)
        known = np.isfinite(values)
        threshold = valley(values[known], self.name) if self.threshold is None else self.threshold
        low = known & (values <= threshold)
        told = pa.table({"id": ids, self.column: pa.array(values, mask=~known)})
        because(ctx, ids.filter(pa.array(low)), f"perplexity up to {threshold:,.1f}", score=values[low])
        for name, value in (("threshold", threshold), ("low", int(low.sum())), ("short", short)):
            ctx.note(f"{self.name}/{name}", value)
        ctx.show(self.name, f"{int(low.sum()):,} of {len(ids):,} documents have a perplexity up to "
                            f"{threshold:,.1f} under the model of harmful text"
                            f"{' and go' if self.drop else ''}; {short:,} have too few words to be judged")
        return attach(without(rows, ids.filter(pa.array(low))) if self.drop else rows, told)

    def depends(self, root: Path) -> str:
        """The files of harmful text with their sizes and times."""
        from trainwright.data.sources.text.text import Text
        return Text(paths=list(self.harmful)).depends(root) if self.harmful else ""

    def _read(self, ctx: Context) -> Model:
        from trainwright.data.filter.perplexed_by_quality import _arpa, _kneser_ney
        assert ctx.folder is not None
        file = ctx.root / self.model if self.model else ctx.folder / "harmful.arpa"
        if self.harmful and not file.is_file():
            try:
                _kneser_ney.write((line for text in self._texts(ctx) for line in sentences(text)),
                                  self.order, file)
            except ValueError:
                raise UserError(f"{self.name}: there is no word in {', '.join(self.harmful)}.") from None
        return _arpa.read(file)

    def _texts(self, ctx: Context) -> Iterator[str]:
        from trainwright.corpus.documents import empty, stream
        from trainwright.data.sources.text.text import Text
        for batch in stream(Text(paths=list(self.harmful), field=self.field).apply(empty(), ctx)):
            yield from (text or "" for text in batch["text"].to_pylist())

    def _perplexities(self, rows: DataFrame, model: Model) -> tuple[pa.Array, Floats, int]:
        """Ids, perplexities (NaN where there is no word), and how many have fewer words than the longest
        n-gram."""
        import pyarrow as pa

        from trainwright.corpus.passes import texts
        from trainwright.corpus.streaming import owned
        ids, values, short = [pa.array([], pa.large_string())], [], 0
        for batch in texts(rows):
            ids.append(owned(batch["id"]).cast(pa.large_string()))
            for text in batch["text"].to_pylist():
                lines = list(sentences(text))
                values.append(model.perplexity(lines))
                short += sum(map(len, lines)) < len(model.orders)
        return pa.concat_arrays(ids), np.array(values), short


def sentences(text: str) -> Iterator[list[str]]:
    """The words of each line that has some."""
    from trainwright.corpus.shingles import words
    return (found for line in text.splitlines() if (found := words(line)))

