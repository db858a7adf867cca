"""Expands a small corpus: lists the entities of each document and writes about every relation between them.

"Synthetic continued pretraining" (EntiGraph, arXiv 2409.07431). For each document D the writer lists the
salient entities E_1 … E_n and gives a summary. For every unordered pair and every unordered triple of them
it then analyses how they relate in the light of D, which is in each prompt as a whole:

    corpus(D) = summary(D)  and  { text(D, S) : S a subset of {E_1 … E_n}, |S| in ``sizes`` }

That is n (n - 1) / 2 texts for pairs and n (n - 1) (n - 2) / 6 for triples. Triples come in random order
(drawn by seed and document), so ``most`` of a size is a fair sample. The list of entities itself is not
training text. ``sizes = [1, 2, 3]`` also writes about each entity alone, as the authors' code does.

The new documents are ``ORIGINAL#summary`` and ``ORIGINAL#relation/I-J-K``. The originals are dropped, since
the paper trains on the synthetic text alone (with a tenth of general text against forgetting: see the
method ``mixture``). Compare it with repeats of the originals and with rephrases, at the same training
tokens, on questions that span a document.

Not for documents longer than the writer reads at once: they are cut into parts, and relations between parts
are lost. The list is requested up to ``tries`` times until it parses and is not empty;
``entigraph/without_entities`` counts the parts that never got one.

Errors: nobody to write, a domain without documents, no part with entities (unless the originals are kept),
a writer that fails (its answers so far are kept). """
from __future__ import annotations

import itertools
import json
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from trainwright.core.errors import UserError, suggest
from trainwright.core.method import Curate
from trainwright.core.stage import Role
from trainwright.lm.writing.documents import kept_table, originals
from trainwright.lm.writing.prompts import filled, passages
from trainwright.lm.writing.writer import Request, Writer, Writing

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context
    from trainwright.corpus.sources import Row

PROMPTS = {
    "entities": "Read the document below. Which people, places, things and ideas matter? Answer with one "
                "JSON object and nothing else: \"summary\" is a summary of the document, \"entities\" a list "
                "of names.\n\nDocument:\n{text}",
    "relation": "Read the document below. Then write a text of your own that works out, from what the "
                "document says, what there is to know of these entities and how each of them bears on the "
                "others. Name them, and say nothing that the document does not "
                "support.\n\nDocument:\n{text}\n\nEntities:\n{entities}"}


class Entigraph(Curate):
    """Replaces documents by a summary and by texts on the relations of their entities."""

    sizes: tuple[int, ...] = (2, 3)
    """Numbers of entities that a relation has."""
    most: int | None = None
    """Most relations of each size and document; default: all, which for triples grows with the cube of the
    entities."""
    keep_originals: bool = False
    """Whether the documents that are read stay in the corpus."""
    domains: tuple[str, ...] = ()
    """Domains whose documents are read; all if none is named. Others stay as they are."""
    domain: str = ""
    """Domain of the new documents; default: that of the original."""
    piece: int = 24_000
    """Longest part of a document, in characters; 24,000 are about 6,000 tokens of English."""
    tries: int = 5
    """How often to ask for the list of entities at most."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Wordings of your own: ``entities`` and ``relation``; ``{text}`` and ``{entities}`` stand for
    document and names."""
    writer: Writer = Writer(max_tokens=2048)
    """Who writes, and how."""
    roles: ClassVar[dict[str, Role]] = {"model": Role()}
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "what was written is kept, so that an interrupted stage asks for nothing "
        "twice"
    }
    example: ClassVar[dict[str, Any]] = {
        "keep_originals": True,
        "domains": ["prose"],
        "piece": 10,
        "tries": 2,
        "prompts": {"entities": "{text}"},
        "writer": {"max_tokens": 2, "at_once": 64},
    }

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1 or len(set(self.sizes)) < len(self.sizes):
            raise ValueError(f"sizes are numbers of 1 and more, none twice, not {list(self.sizes)}")
        for name in ("most", "piece", "tries"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be positive, not {value}")
        for name, prompt in self.prompts.items():
            if name not in PROMPTS:
                raise ValueError(f"there is no prompt {name!r}{suggest(name, PROMPTS)}")
            if "{text}" not in prompt or (name == "relation" and "{entities}" not in prompt):
                more = " or {entities}" if name == "relation" else ""
                raise ValueError(f"the prompt {name!r} lacks {{text}}{more}")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.selecting import columns, keep, settled
        from trainwright.corpus.sources import union
        rows = settled(documents, ctx)
        found = originals(rows, self.domains, self.name)
        with self.writer.start(self.name, ctx) as writing:
            parts = self._read([p for one in found for p in self._parts(one)], writing)
            ctx.note(f"{self.name}/without_entities", float(sum(not p.entities for p in parts)))
            if not any(p.entities for p in parts) and not self.keep_originals:
                raise UserError(f"entigraph: the writer named no entity in any of {len(parts):,} parts of "
                                f"documents, in {self.tries} tries each: it must answer with a JSON object "
                                "that has a list \"entities\".")
            new = kept_table(self._written(parts, writing, ctx), ctx)
        if not self.keep_originals:
            read = {one["id"] for one in found}
            rows = keep(rows, [i for i in columns(rows, "id")["id"].to_pylist() if i not in read])
        return union(rows, new)

    def _parts(self, one: Mapping[str, str]) -> list[Part]:
        texts = list(passages(one["text"], self.piece))
        return [Part(one["id"], one["origin"], f"{one['id']}#{n}" if len(texts) > 1 else one["id"], text,
                     self.domain or one["domain"]) for n, text in enumerate(texts)]

    def _read(self, parts: list[Part], writing: Writing) -> list[Part]:
        """The parts with summary and entities; the writer is asked again for those without entities."""
        prompt = (PROMPTS | self.prompts)["entities"]
        for turn in range(self.tries):
            open_ = [i for i, p in enumerate(parts) if not p.entities]
            requests = [Request(f"{parts[i].id}#entities/{turn}", filled(prompt, text=parts[i].text))
                        for i in open_]
            for i, (_, answer) in zip(open_, writing.write(requests), strict=True):
                summary, entities = listed(answer)
                parts[i] = parts[i]._replace(summary=summary, entities=entities)
        return parts

    def _written(self, parts: Sequence[Part], writing: Writing, ctx: Context) -> Iterator[Row]:
        from trainwright.corpus.sources import document
        prompt, asked = (PROMPTS | self.prompts)["relation"], deque[tuple[Part, str, tuple[str, ...]]]()

        def requests() -> Iterator[Request]:
            for part in parts:
                for places in subsets(part, self.sizes, self.most, ctx.seed):
                    names = tuple(part.entities[i] for i in places)
                    name = f"{part.id}#relation/{'-'.join(map(str, places))}"
                    asked.append((part, name, names))
                    listing = "\n".join(f"- {n}" for n in names)
                    yield Request(name, filled(prompt, text=part.text, entities=listing))

        for part in parts:
            if part.entities and part.summary:
                yield document(id=f"{part.id}#summary", text=part.summary, domain=part.domain,
                               source=self.name,
                               metadata={"original": part.original}, origin=part.origin)
        for _, answer in writing.write(requests()):
            part, name, names = asked.popleft()
            if answer:
                yield document(id=name, text=answer, domain=part.domain, source=self.name,
                               metadata={"original": part.original, "entities": names}, origin=part.origin)


class Part(NamedTuple):
    """A document, or as much of it as is read at once, with what was found in it."""

    original: str
    origin: str
    id: str
    text: str
    domain: str
    summary: str = ""
    entities: tuple[str, ...] = ()


def listed(answer: str) -> tuple[str, tuple[str, ...]]:
    """Summary and entities (each once) of an answer, which may be fenced; none if it holds no such JSON
    object."""
    start, end = answer.find("{"), answer.rfind("}")
    try:
        found = json.loads(answer[start:end + 1])
        names = [n.strip() for n in found["entities"] if isinstance(n, str) and n.strip()]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "", ()
    summary = found.get("summary")
    return summary.strip() if isinstance(summary, str) else "", tuple(dict.fromkeys(names))


def subsets(part: Part, sizes: Sequence[int], most: int | None, seed: int) -> Iterator[tuple[int, ...]]:
    """The relations of a part, as places in its list of entities: each unordered set once."""
    for size in sizes:
        every = list(itertools.combinations(range(len(part.entities)), size))
        if size > 2 or most is not None:
            random.Random(f"entigraph/{seed}/{size}/{part.id}").shuffle(every)
        yield from every[:most]
