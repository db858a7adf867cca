"""Drops documents that share runs of words with held-out documents and benchmarks, or cuts these out of them.

"Language Models are Few-Shot Learners" (arXiv 2005.14165, appendix C). Left out: that the appendix ignores
runs which more than 10 documents share, as templates, since they would have to be counted over the whole
corpus first; raise ``least`` instead. Both sides are cut into runs of ``ngram`` words, ignoring case,
punctuation and space. A document is contaminated by a benchmark if at least ``least`` of its places begin a
run that a text of that benchmark has, too. A text of fewer than ``ngram`` words is searched for as a whole,
down to ``shortest`` words; shorter ones would match by chance and are only counted.

A benchmark is

    each file of ``files`` (named by its stem; a folder or glob is one benchmark), read as by ``text``;
    each domain of the held-out documents (tune and test) of ``from.data`` and ``from.target``.

A contaminated document is dropped whole by default: most documents are short, what stands around a question
is about it, and no text is torn. With ``cut`` it is cut as in the appendix, which found that dropping long
documents (books) for one match costs too much: each match goes with ``window`` characters on either side,
what is left becomes documents of their own (``ORIGINAL#piece/N``, with its standard columns and its split),
pieces of fewer than ``shortest_piece`` characters are dropped, and a document that falls into more than
``pieces`` is dropped whole. A word at the edge of a hole goes with it; texts are normalized to NFC.
Conversations, pairs and documents with other content are never cut but dropped.

Each of them is reported, even if nothing was found: contaminated documents, texts of the benchmark found in
some document, texts too short to search for. The log and the artifact (``texts`` and ``figures`` of its
manifest) keep it.

Not a proof of cleanness: a paraphrase or a translation shares no run. A run that everybody writes (a
licence) is shared, too: raise ``least`` if templates are lost. The benchmarks' runs are in memory, 20 bytes
for each of their words.

Errors: nothing to compare with; a file that cannot be read or lacks the column ``field``; only benchmarks
of too short texts. """
from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Curate
from trainwright.core.stage import CORPUS, Role
from trainwright.corpus.shingles import Hashes, codes, ngrams, places

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.corpus.sources import Row


class Decontaminate(Curate):
    """Drops, or marks, documents that share runs of words with evaluation sets, and reports on each set."""

    files: tuple[str, ...] = ()
    """Files, folders, globs with texts of benchmarks; relative ones are read from the recipe's folder."""
    field: str = "text"
    """Column that holds the text, in files that are tables."""
    held_out: bool = True
    """Whether to search for the held-out documents of ``from.data`` and ``from.target``."""
    ngram: int = 13
    """Words in a run."""
    shortest: int = 8
    """Words of the shortest text that is searched for."""
    least: int = 1
    """Places that a document must share with one benchmark to be contaminated."""
    drop: bool = True
    """Whether to drop contaminated documents; otherwise all stay, and ``column`` says how much each
    shares."""
    cut: bool = False
    """Whether to cut out of plain documents what they share, instead of dropping them."""
    window: int = 200
    """With ``cut``: characters that go on either side of a match."""
    shortest_piece: int = 200
    """With ``cut``: characters of the shortest piece that is kept."""
    pieces: int = 10
    """With ``cut``: the most pieces into which a document may fall; it is dropped where there are more."""
    column: str = "contamination"
    """Column for the most places that a document shares with one benchmark, if nothing is dropped."""
    roles: ClassVar[dict[str, Role]] = {"target": CORPUS}
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "what all documents share with each benchmark is known before any is "
        "dropped"
    }
    example: ClassVar[dict[str, Any]] = {"ngram": 6, "shortest": 4}

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.ngram:
            raise ValueError(f"shortest must be from 1 to ngram = {self.ngram}, not {self.shortest}")
        if self.least < 1:
            raise ValueError(f"least must be positive, not {self.least}")
        if self.cut and not self.drop:
            raise ValueError("cut takes text out of documents; with drop = false nothing is taken: say one")
        if self.window < 0 or self.shortest_piece < 1 or self.pieces < 1:
            raise ValueError("window must be 0 or more, shortest_piece and pieces 1 or more, not "
                             f"{self.window}, {self.shortest_piece} and {self.pieces}")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        import pyarrow as pa

        from trainwright.corpus.passes import without
        from trainwright.corpus.provenance import because
        from trainwright.corpus.selecting import attach, settled
        benchmarks = self._benchmarks(ctx)
        rows = settled(documents, ctx)
        ids, shared, sets = benchmarks.search(rows)
        self._tell(benchmarks, len(ids), ctx)
        if self.drop:
            bad = shared >= self.least
            gone = ids.filter(pa.array(bad))
            why = "was cut where it shares" if self.cut else "shares"
            because(ctx, gone, f"{why} runs of words with a benchmark", score=shared[bad],
                    partner=[sets[i] for i in np.flatnonzero(bad)])
            left = without(rows, gone)
            return self._with_pieces(left, rows, gone, benchmarks, ctx) if self.cut else left
        return attach(rows, pa.table({"id": ids, self.column: shared}))

    def _with_pieces(self, left: DataFrame, rows: DataFrame, gone: pa.ChunkedArray, benchmarks: Benchmarks,
                     ctx: Context) -> DataFrame:
        """The table with what is left of the contaminated documents."""
        from trainwright.corpus.selecting import keep
        from trainwright.corpus.sources import union
        from trainwright.lm.writing.documents import kept_table
        return union(left, kept_table(self._cut(keep(rows, gone.to_pylist()), benchmarks, ctx), ctx))

    def _cut(self, contaminated: DataFrame, benchmarks: Benchmarks, ctx: Context) -> Iterator[Row]:
        from trainwright.corpus.columns import LABEL, MESSAGES, SCHEMA, TYPED
        from trainwright.corpus.documents import stream
        kept = cut = 0
        for batch in stream(contaminated.select(*SCHEMA)):
            for row in batch.to_pylist():
                typed = [name for name in TYPED if name != LABEL and row[name] is not None]
                plain = row[MESSAGES] is None and not typed
                text = unicodedata.normalize("NFC", row["text"] or "")
                found = self.around(text, benchmarks.places(text)) if plain else []
                for number, piece in enumerate(found):
                    yield row | {"id": f"{row['id']}#piece/{number}", "text": piece,
                                 "origin": row["origin"] or row["id"]}
                kept, cut = kept + len(found), cut + bool(found)
        ctx.note(f"{self.name}/cut", float(cut))
        ctx.note(f"{self.name}/pieces", float(kept))

    def around(self, text: str, matches: Sequence[tuple[int, int]]) -> list[str]:
        """What is left of a text around its matches, given as places of characters; nothing where it falls
        into too many pieces."""
        edges, at = list[tuple[int, int]](), 0
        for begin, end in sorted(matches):
            edges.append((at, begin - self.window))
            at = max(at, end + self.window)
        whole = [text[a:b] for a, b in trimmed(text, [*edges, (at, len(text))])]
        parts = [one.strip() for one in whole if one.strip()]
        if not matches or len(parts) > self.pieces:
            return []
        return [one for one in parts if len(one) >= self.shortest_piece]

    def depends(self, root: Path) -> str:
        """The files with their sizes and times."""
        from trainwright.data.sources.text.text import Text
        return Text(paths=list(self.files)).depends(root) if self.files else ""

    def _benchmarks(self, ctx: Context) -> Benchmarks:
        found = Benchmarks(self.ngram, self.shortest, self.least)
        for path in self.files:
            found.add_files(path, self.field, ctx)
        for role in ("data", "target") if self.held_out else ():
            for folder in ctx.inputs.get(role, []):
                found.add_held_out(role, folder)
        if not found.names:
            raise UserError("decontaminate has nothing to compare with: name files, or a corpus with "
                            "documents that are kept back (from = { data = \"NAME\" }).")
        found.close()
        return found

    def _tell(self, benchmarks: Benchmarks, documents: int, ctx: Context) -> None:
        for one in benchmarks.told():
            for what in ("documents", "found", "texts", "too_short"):
                ctx.note(f"{self.name}/{one['name']}/{what}", one[what])
            ctx.show(f"{self.name}/{one['name']}",
                     f"{one['documents']:,} of {documents:,} documents contaminated; {one['found']:,} of "
                     f"{one['texts']:,} texts found, {one['too_short']:,} too short to look for")


def trimmed(text: str, edges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Stretches of a text without the words that their ends cut through."""
    for begin, end in edges:
        while 0 < begin < end and not text[begin - 1].isspace():
            begin += 1
        while begin < end < len(text) and not text[end].isspace():
            end -= 1
        if begin < end:
            yield begin, end


class Benchmark:
    """The runs of one evaluation set, with the text that each is of."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.runs: dict[int, list[Hashes]] = {}
        """By their length in words; those of a text that is searched for as a whole are shorter than the
        others."""
        self.owners: dict[int, list[NDArray[np.int64]]] = {}
        self.hits: set[int] = set()
        """Hashes of runs that some document has."""
        self.texts = self.too_short = self.documents = 0

    def add(self, text: str, ngram: int, shortest: int) -> None:
        found = codes(text)
        size = min(ngram, len(found))
        if size < shortest:
            self.too_short += 1
        else:
            runs = np.unique(ngrams(found, size))
            self.runs.setdefault(size, []).append(runs)
            self.owners.setdefault(size, []).append(np.full(len(runs), self.texts))
        self.texts += 1

    def found(self) -> int:
        """Texts of which some document has a run."""
        hits = np.fromiter(self.hits, np.uint64, len(self.hits))
        owners = [np.concatenate(self.owners[n])[np.isin(np.concatenate(runs), hits)]
                  for n, runs in self.runs.items()]
        return len(np.unique(np.concatenate(owners))) if owners else 0


class Benchmarks:
    """All evaluation sets that documents are compared with."""

    def __init__(self, ngram: int, shortest: int, least: int) -> None:
        self.ngram, self.shortest, self.least = ngram, shortest, least
        self.names: dict[str, Benchmark] = {}
        self.runs: dict[int, Hashes] = {}
        """Of all sets together, sorted."""
        self.sets: list[tuple[Benchmark, dict[int, Hashes]]] = []

    def add_files(self, path: str, field: str, ctx: Context) -> None:
        """The texts of a file, folder or glob; a benchmark has the name that the method ``text`` gives
        their domain."""
        from trainwright.corpus.documents import empty, stream
        from trainwright.data.sources.text.text import Text
        for batch in stream(Text(paths=[path], field=field).apply(empty(), ctx)):
            for row in batch.select(["domain", "text"]).to_pylist():
                self._add(row["domain"], row["text"])

    def add_held_out(self, role: str, folder: Path) -> None:
        """The documents that a corpus keeps back, by domain."""
        from trainwright.corpus.columns import ARROW
        from trainwright.corpus.documents import Earlier
        for table in Earlier(folder).held(ARROW):
            for row in table.select(["domain", "text"]).to_pylist():
                self._add(f"{role}/{row['domain']}", row["text"])

    def _add(self, name: str, text: str | None) -> None:
        self.names.setdefault(name, Benchmark(name)).add(text or "", self.ngram, self.shortest)

    def close(self) -> None:
        """Make what was added ready to be searched for.

        Raises:
            UserError: no text is long enough.
        """
        for one in self.names.values():
            self.sets.append((one, {n: np.unique(np.concatenate(runs)) for n, runs in one.runs.items()}))
        for size in sorted({n for _, runs in self.sets for n in runs}):
            self.runs[size] = np.unique(np.concatenate([runs[size] for _, runs in self.sets if size in runs]))
        if not self.runs:
            texts = sum(one.texts for one in self.names.values())
            raise UserError(f"decontaminate has nothing to look for: none of the {texts:,} texts of "
                            f"{', '.join(self.names)} has shortest = {self.shortest} words.")

    def search(self, rows: DataFrame) -> tuple[pa.ChunkedArray, NDArray[np.int64], list[str]]:
        """Ids of the documents, and of each the most places that it shares with one set, and the name of
        that set (empty where there is none)."""
        from trainwright.corpus.passes import texts
        from trainwright.corpus.streaming import owned
        ids: list[pa.Array] = [pa.array([], pa.large_string())]
        shared: list[tuple[int, str]] = []
        for batch in texts(rows):
            ids.append(owned(batch["id"]).cast(pa.large_string()))
            shared += [self._shared(text) for text in batch["text"].to_pylist()]
        places = np.array([most for most, _ in shared], dtype=np.int64)
        return pa.chunked_array(ids), places, [name for _, name in shared]

    def _shared(self, text: str) -> tuple[int, str]:
        said = codes(text)
        hits = {n: runs[_among(runs, known)]
                for n, known in self.runs.items() if len(runs := ngrams(said, n))}
        most, which = 0, ""
        if any(len(runs) for runs in hits.values()):
            for one, own in self.sets:
                met = [runs[_among(runs, own[n])] for n, runs in hits.items() if n in own]
                places = sum(map(len, met))
                if places > most:
                    most, which = places, one.name
                one.documents += places >= self.least
                one.hits.update(*(m.tolist() for m in met))
        return most, which

    def places(self, text: str) -> list[tuple[int, int]]:
        """Where a text in NFC has a run of any set: the places of its characters; none where its words
        cannot be told."""
        found, said = places(text), codes(text)
        return [(found[i][0], found[i + n - 1][1]) for n, known in self.runs.items() if found
                for i in np.flatnonzero(_among(ngrams(said, n), known)).tolist()]

    def told(self) -> list[dict[str, Any]]:
        """What was found of each set, by name."""
        return [{"name": name, "documents": one.documents, "found": one.found(), "texts": one.texts,
                 "too_short": one.too_short}
                for name, one in sorted(self.names.items())]


def _among(runs: Hashes, known: Hashes) -> NDArray[np.bool_]:
    """Which of ``runs`` are in ``known``, which is sorted."""
    place = np.searchsorted(known, runs)
    place[place == len(known)] = 0
    return known[place] == runs  # type: ignore[no-any-return]
