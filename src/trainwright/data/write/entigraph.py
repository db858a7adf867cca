"""Expands a small corpus: names the entities of each document and writes about every relation between them.

"Synthetic continued pretraining" (EntiGraph, arXiv 2409.07431). For each document D the writer lists the salient entities
E_1 … E_n and gives a summary; then, for every unordered pair and every unordered triple of them, it analyses how they are related
in the light of D, which stands whole in each prompt:

    corpus(D) = summary(D)  and  { text(D, S) : S a subset of {E_1 … E_n}, |S| in ``sizes`` }

that is n (n - 1) / 2 texts for pairs and n (n - 1) (n - 2) / 6 for triples. Triples come in random order (drawn by seed and
document), so that ``most`` of a size is a fair sample. The list of entities itself is not text for training.
``sizes = [1, 2, 3]`` also writes about each entity alone, as the authors' code does.

The new documents are ``ORIGINAL#summary`` and ``ORIGINAL#relation/I-J-K``; the originals are left out, since the model is trained
on the synthetic text alone (with a tenth of general text against forgetting: see the method ``mixture``). The comparison to
make is with repeats of the originals and with rephrases, at the same training tokens, on questions that span a document.

Not for documents longer than the writer reads at once: they are cut into parts, and relations between parts are lost. The list
is asked for again up to ``tries`` times until it can be read and is not empty; ``entigraph/without_entities`` counts the parts
that have none.

Errors: nobody to write, a domain without documents, no part with entities (unless the originals are kept), a writer that fails
(what was written is kept).
"""
from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, ClassVar

from trainwright.core.bench import Bench
from trainwright.core.errors import UserError, suggest
from trainwright.core.method import Curate
from trainwright.data.write._entities import PROMPTS, Part, listed, subsets
from trainwright.lm.writing.writer import Request, Writer, check_writing, filled, kept_table, passages, sources

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context
    from trainwright.corpus.sources import Row


class Entigraph(Curate):
    """Replaces documents by a summary and by texts on the relations of their entities."""

    sizes: tuple[int, ...] = (2, 3)
    """Of how many entities a relation is."""
    most: int | None = None
    """Relations of each size and document at most; default: all, which for triples grows with the cube of the entities."""
    keep_originals: bool = False
    """Whether the documents that are read stay in the corpus."""
    on: tuple[str, ...] = ()
    """Domains whose documents are read; all where none is named. Others are left as they are."""
    domain: str = ""
    """Domain of the new documents; default: that of the original."""
    piece: int = 24_000
    """Characters of a part at most; 24,000 are about 6,000 tokens of English."""
    tries: int = 5
    """How often the list of entities is asked for at most."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Own wordings of ``entities`` and ``relation``; ``{text}`` and ``{entities}`` stand for the document and the names."""
    endpoint: str = ""
    """Address of a server that speaks OpenAI's protocol, such as http://127.0.0.1:8000/v1; default: ``from.model`` writes."""
    model_name: str = ""
    """What the endpoint calls the model."""
    key_variable: str = ""
    """Environment variable that holds the endpoint's key; default: none is sent."""
    at_once: int = 8
    """Requests under way at once; with a local model, rows of a batch."""
    requests_per_minute: int = 0
    """How many requests an endpoint is sent a minute at most; 0: no limit."""
    temperature: float = 0.7
    """0 takes the likeliest token each time."""
    top_k: int = 0
    """Tokens that are drawn from, the likeliest; 0: all."""
    max_tokens: int = 2048
    """Tokens of an answer at most."""
    bench: ClassVar[Bench | None] = Bench(
        suite="knowledge", at="written", scale="the paper's writer is GPT-4; one of 135 M parameters invents more than it tells",
        add=({"use": "entigraph", "on": ["bio"], "sizes": [2], "most": 4, "max_tokens": 128, "at_once": 16},),
        claim="questions about documents are answered without access to them, better than after training on their paraphrases")
    example: ClassVar[dict[str, Any]] = {"keep_originals": True, "on": ["prose"], "piece": 10, "tries": 2, "max_tokens": 2,
                                         "at_once": 64, "prompts": {"entities": "{text}"}}

    def __post_init__(self) -> None:
        check_writing(self)
        if not self.sizes or min(self.sizes) < 1 or len(set(self.sizes)) < len(self.sizes):
            raise ValueError(f"sizes are numbers of 1 and more, none twice, not {list(self.sizes)}")
        if wrong := [n for n in ("most", "piece", "tries") if (value := getattr(self, n)) is not None and value < 1]:
            raise ValueError(f"{wrong[0]} must be positive, not {getattr(self, wrong[0])}")
        for name, prompt in self.prompts.items():
            if name not in PROMPTS:
                raise ValueError(f"there is no prompt {name!r}{suggest(name, PROMPTS)}")
            if "{text}" not in prompt or (name == "relation" and "{entities}" not in prompt):
                raise ValueError(f"the prompt {name!r} lacks {{text}}{' or {entities}' if name == 'relation' else ''}")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.selecting import columns, keep, settled
        from trainwright.corpus.sources import union
        rows = settled(documents, ctx)
        found = sources(rows, self.on, self.name)
        with Writer(self, ctx) as writer:
            parts = self._read([p for one in found for p in self._parts(one)], writer)
            ctx.note(f"{self.name}/without_entities", float(sum(not p.entities for p in parts)))
            if not any(p.entities for p in parts) and not self.keep_originals:
                raise UserError(f"entigraph: the writer named no entity in any of {len(parts):,} parts of documents, in "
                                f"{self.tries} tries each: it must answer with a JSON object that has a list \"entities\".")
            new = kept_table(self._written(parts, writer, ctx), ctx)
        if not self.keep_originals:
            read = {one["id"] for one in found}
            rows = keep(rows, [i for i in columns(rows, "id")["id"].to_pylist() if i not in read])
        return union(rows, new)

    def _parts(self, one: Mapping[str, str]) -> list[Part]:
        texts = list(passages(one["text"], self.piece))
        return [Part(one["id"], f"{one['id']}#{n}" if len(texts) > 1 else one["id"], text, self.domain or one["domain"])
                for n, text in enumerate(texts)]

    def _read(self, parts: list[Part], writer: Writer) -> list[Part]:
        """The parts with summary and entities; those without entities are asked for again."""
        prompt = (PROMPTS | self.prompts)["entities"]
        for turn in range(self.tries):
            open_ = [i for i, p in enumerate(parts) if not p.entities]
            requests = [Request(f"{parts[i].id}#entities/{turn}", filled(prompt, text=parts[i].text)) for i in open_]
            for i, (_, answer) in zip(open_, writer.write(requests), strict=True):
                summary, entities = listed(answer)
                parts[i] = parts[i]._replace(summary=summary, entities=entities)
        return parts

    def _written(self, parts: Sequence[Part], writer: Writer, ctx: Context) -> Iterator[Row]:
        from trainwright.corpus.sources import document
        prompt, asked = (PROMPTS | self.prompts)["relation"], deque[tuple[Part, str, tuple[str, ...]]]()

        def requests() -> Iterator[Request]:
            for part in parts:
                for places in subsets(part, self.sizes, self.most, ctx.seed):
                    names, name = tuple(part.entities[i] for i in places), f"{part.id}#relation/{'-'.join(map(str, places))}"
                    asked.append((part, name, names))
                    yield Request(name, filled(prompt, text=part.text, entities="\n".join(f"- {n}" for n in names)))

        for part in parts:
            if part.entities and part.summary:
                yield document(id=f"{part.id}#summary", text=part.summary, domain=part.domain, source=self.name,
                               metadata={"original": part.original})
        for _, answer in writer.write(requests()):
            part, name, names = asked.popleft()
            if answer:
                yield document(id=name, text=answer, domain=part.domain, source=self.name,
                               metadata={"original": part.original, "entities": names})
