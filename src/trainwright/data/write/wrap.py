"""Rephrases documents in other styles and adds the rephrases to the corpus beside the originals.

"Rephrasing the Web: A Recipe for Compute and Data-Efficient Language Modeling" (WRAP, arXiv 2401.16380). An
instruction-tuned model paraphrases each document in one of four styles: ``easy`` (for a small child),
``medium`` (good English as in Wikipedia), ``hard`` (terse, with rare words), ``qa`` (questions and
answers). The paper trains on real and rephrased text 1 : 1, which is ``ratio = 1``: as many rephrased
documents as originals. With several styles, each document takes consecutive ones, starting from a style
drawn by its id; a fractional ratio draws documents by id.

A document is rephrased in passages (about 300 tokens in the paper), because longer ones lose content. What
a chat model says around its answer is removed. A document with an unanswered passage has no rephrase, and
``wrap/left_out`` counts those. The new document is ``ORIGINAL#STYLE``; its metadata name the original and
the style. Conversations stay as they are. To train on exactly as many tokens of either kind, give the
rephrases a ``domain`` of their own and mix.

The paper's comparison gives the baseline the same total of tokens, so it reads the real text more often. A
writer that knows the questions of the evaluation leaks them into the corpus.

Not for text whose wording matters (code, verse, law).

Errors: nobody to write, a ratio above the number of styles, a style without a prompt, a domain without
documents, a writer that fails (its answers so far are kept). """
from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, ClassVar

from trainwright.core.errors import suggest
from trainwright.core.method import Curate
from trainwright.core.stage import Role
from trainwright.lm.writing.documents import kept_table, originals
from trainwright.lm.writing.prompts import cleaned, filled, passages
from trainwright.lm.writing.writer import Request, Writer, Writing

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context
    from trainwright.corpus.sources import Row

AROUND = " Keep every fact, add none, and answer with the new text only.\n\n{text}"
PROMPTS = {
    "easy": "Say the passage below again in the simplest words and in very short sentences, for a small "
            "child." + AROUND,
    "medium": "Say the passage below again in other words, in the clear and correct English of a Wikipedia "
              "article."
              + AROUND,
    "hard": "Say the passage below again tersely, in learned language with rare and difficult words, for a "
            "scholar."
            + AROUND,
    "qa": "Turn the passage below into a series of questions and answers, each on lines that begin with "
          "\"Question:\" and \"Answer:\"." + AROUND}


class Wrap(Curate):
    """Adds rephrased documents, written by ``from.model`` or an endpoint."""

    styles: tuple[str, ...] = ("medium", "qa")
    """Any of easy, medium, hard and qa, and the names in ``prompts``."""
    ratio: float = 1.0
    """Rephrased documents for each original; at most as many as there are styles."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Wordings of your own by style, for other languages or styles; ``{text}`` stands for the passage."""
    piece: int = 1200
    """Longest passage, in characters; 1,200 are about 300 tokens of English."""
    domains: tuple[str, ...] = ()
    """Domains whose documents are rephrased; all if none is named."""
    domain: str = ""
    """Domain of the rephrases; default: that of the original."""
    writer: Writer = Writer()
    """Who writes, and how."""
    roles: ClassVar[dict[str, Role]] = {"model": Role()}
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "what was written is kept, so that an interrupted stage asks for nothing "
        "twice"
    }
    example: ClassVar[dict[str, Any]] = {
        "styles": ["plain"], "prompts": {"plain": "{text}"}, "piece": 10, "domain": "new",
        "domains": ["prose", "odd"],
        "writer": {"max_tokens": 2, "at_once": 64}}

    def __post_init__(self) -> None:
        known = PROMPTS | self.prompts
        for style in self.styles:
            if style not in known:
                raise ValueError(
                    f"styles: there is no style {style!r}{suggest(style, known)}; a new one needs a "
                    "prompt in prompts"
                )
        for style, prompt in self.prompts.items():
            if "{text}" not in prompt:
                raise ValueError(f"the prompt of the style {style!r} has no {{text}}, where the passage goes")
        if not self.styles or len(set(self.styles)) < len(self.styles):
            raise ValueError("styles names one style at least, and none twice")
        if not 0 < self.ratio <= len(self.styles):
            raise ValueError(f"ratio must be above 0 and at most the number of styles, {len(self.styles)}, "
                             f"not {self.ratio}")
        if self.piece < 1:
            raise ValueError(f"piece must be positive, not {self.piece}")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.selecting import settled
        from trainwright.corpus.sources import union
        rows = settled(documents, ctx)
        read = originals(rows, self.domains, self.name)
        with self.writer.start(self.name, ctx) as writing:
            return union(rows, kept_table(self._rephrased(read, writing, ctx), ctx))

    def _rephrased(self, read: Sequence[dict[str, str]], writing: Writing, ctx: Context) -> Iterator[Row]:
        """A row for each document and style, as soon as all of its passages are there."""
        from trainwright.corpus.sources import document
        parts: list[str] = []
        for (one, style, left), answer in self._answers(read, writing, ctx):
            parts.append(cleaned(answer))
            if left:
                continue
            if all(parts):
                yield document(id=f"{one['id']}#{style}", text="\n\n".join(parts), domain=self.domain
                               or one["domain"],
                               source=self.name, metadata={"original": one["id"], "style": style},
                               origin=one["origin"])
            ctx.note(f"{self.name}/{'rephrased' if all(parts) else 'left_out'}", 1.0)
            parts = []

    def _answers(self, read: Sequence[dict[str, str]], writing: Writing,
                 ctx: Context) -> Iterator[tuple[tuple[dict[str, str], str, int], str]]:
        """For each passage its document, the style, how many passages of the document follow, and the
        answer."""
        asked: deque[tuple[dict[str, str], str, int]] = deque()

        def requests() -> Iterator[Request]:
            for one in read:
                texts = list(passages(one["text"], self.piece))
                for style in self.drawn(one["id"], ctx.seed):
                    prompt = (PROMPTS | self.prompts)[style]
                    for number, text in enumerate(texts):
                        asked.append((one, style, len(texts) - 1 - number))
                        yield Request(f"{one['id']}#{style}/{number}", filled(prompt, text=text))

        for _, answer in writing.write(requests()):
            yield asked.popleft(), answer

    def drawn(self, id: str, seed: int) -> list[str]:
        """The styles in which a document is rephrased."""
        from trainwright.corpus.tokens import uniform
        many = int(self.ratio) + (uniform(id, f"wrap/{seed}/many") < self.ratio % 1)
        first = int(uniform(id, f"wrap/{seed}/style") * len(self.styles))
        return [self.styles[(first + i) % len(self.styles)] for i in range(many)]
