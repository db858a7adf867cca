"""Drops documents that contain text of the evaluation: runs of words that they share with held-out documents and benchmarks.

"Language Models are Few-Shot Learners" (arXiv 2005.14165, appendix C). Both sides are cut into runs of ``ngram`` words, without
regard to case, punctuation and space. A document is contaminated by a benchmark where it has at least ``least`` places at which a
run begins that a text of that benchmark has, too. A text of fewer than ``ngram`` words is looked for as a whole, down to
``shortest`` words; shorter ones would be met by chance and are only counted.

A benchmark is

    each file of ``files`` (named by its stem; a folder or glob is one benchmark), read as the method ``text`` reads files;
    each domain of the documents that are kept back (tune and test) of ``from.data`` and of ``from.target``: ``data/DOMAIN`` …

What was found is told for each of them, nothing found included: documents contaminated, texts of the benchmark found in some
document, texts too short to look for. The log and the artifact (``texts`` and ``figures`` of its manifest) keep it.

Not a proof of cleanness: a paraphrase or a translation shares no run. A run that everybody writes (a licence) is shared, too:
raise ``least`` where text of templates is lost. Runs of the benchmarks are held in memory, 20 bytes for each word of them.

Errors: nothing to compare with; a file that cannot be read or lacks the column ``field``; benchmarks of too short texts alone.
"""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from trainwright.core.errors import UserError
from trainwright.core.method import Curate

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context
    from trainwright.data.filter._leaks import Benchmarks


class Decontaminate(Curate):
    """Drops, or marks, documents that share runs of words with evaluation sets; tells of each."""

    files: tuple[str, ...] = ()
    """Files, folders, globs with texts of benchmarks; relative ones are read from the recipe's folder."""
    field: str = "text"
    """Column that holds the text, in files that are tables."""
    held_out: bool = True
    """Whether the documents kept back of ``from.data`` and ``from.target`` are looked for."""
    ngram: int = 13
    """Words in a run."""
    shortest: int = 8
    """Words of the shortest text that is looked for."""
    least: int = 1
    """Places that a document must share with one benchmark to be contaminated."""
    drop: bool = True
    """Whether contaminated documents are dropped; else all stay, and ``column`` tells."""
    column: str = "contamination"
    """Where nothing is dropped: the column with the most places that a document shares with one benchmark."""
    example: ClassVar[dict[str, Any]] = {"ngram": 6, "shortest": 4}

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.ngram:
            raise ValueError(f"shortest must be from 1 to ngram = {self.ngram}, not {self.shortest}")
        if self.least < 1:
            raise ValueError(f"least must be positive, not {self.least}")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        import pyarrow as pa

        from trainwright.corpus.passes import without
        from trainwright.corpus.selecting import attach, settled
        benchmarks = self._benchmarks(ctx)
        rows = settled(documents, ctx)
        ids, shared = benchmarks.search(rows)
        self._tell(benchmarks, len(ids), ctx)
        if self.drop:
            return without(rows, ids.filter(pa.array(shared >= self.least)))
        return attach(rows, pa.table({"id": ids, self.column: shared}))

    def depends(self, root: Path) -> str:
        """The files with their sizes and times."""
        from trainwright.data.sources.text.text import Text
        return Text(paths=list(self.files)).depends(root) if self.files else ""

    def _benchmarks(self, ctx: Context) -> Benchmarks:
        from trainwright.data.filter._leaks import Benchmarks
        found = Benchmarks(self.ngram, self.shortest, self.least)
        for path in self.files:
            found.add_files(path, self.field, ctx)
        for role in ("data", "target") if self.held_out else ():
            for folder in ctx.inputs.get(role, []):
                found.add_held_out(role, folder)
        if not found.names:
            raise UserError("decontaminate has nothing to compare with: name files, or a corpus with documents that are kept "
                            "back (from = { data = \"NAME\" }).")
        found.close()
        return found

    def _tell(self, benchmarks: Benchmarks, documents: int, ctx: Context) -> None:
        for one in benchmarks.told():
            for what in ("documents", "found", "texts", "too_short"):
                ctx.note(f"{self.name}/{one['name']}/{what}", one[what])
            ctx.show(f"{self.name}/{one['name']}",
                     f"{one['documents']:,} of {documents:,} documents contaminated; {one['found']:,} of {one['texts']:,} texts "
                     f"found, {one['too_short']:,} too short to look for")
