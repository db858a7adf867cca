"""Rephrases documents in other styles and puts the new ones beside the originals.

"Rephrasing the Web: A Recipe for Compute and Data-Efficient Language Modeling" (arXiv 2401.16380). An instruction-tuned model
paraphrases each document in one of four styles: ``easy`` (a small child understands it), ``medium`` (good English as in
Wikipedia), ``hard`` (terse, rare words), ``qa`` (questions and answers). Real and rephrased text are trained on 1 : 1, which is
``ratio = 1``: so many rephrased documents for each original. With several styles each document gets the next of them in turn,
beginning with one drawn by its id; of a ratio's broken part the documents are drawn by id.

A document is rephrased in passages (the paper: about 300 tokens), because a longer one loses content; what a chat model says
around its answer is taken off. A document of which a passage got no answer has no rephrase; ``wrap/left_out`` counts them.
The new document is ``ORIGINAL#STYLE``; its metadata name the original and the style. Conversations are left alone. For
exactly as many tokens of either kind give the rephrases a ``domain`` of their own and mix.

The comparison that the paper makes gives the baseline the same tokens in all: it reads the real text more often. A writer that
knows the questions of the evaluation leaks them into the corpus.

Errors: nobody to write, a ratio above the number of styles, a style without a prompt, a domain without documents, a writer
that fails (what was written is kept).
"""
from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, ClassVar

from trainwright.core.bench import Bench
from trainwright.core.errors import suggest
from trainwright.core.method import Curate
from trainwright.lm.writing.writer import Request, Writer, check_writing, cleaned, filled, kept_table, passages, sources

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context
    from trainwright.corpus.sources import Row

AROUND = " Keep every fact, add none, and answer with the new text only.\n\n{text}"
PROMPTS = {
    "easy": "Say the passage below again in the simplest words and in very short sentences, for a small child." + AROUND,
    "medium": "Say the passage below again in other words, in the clear and correct English of a Wikipedia article." + AROUND,
    "hard": "Say the passage below again tersely, in learned language with rare and difficult words, for a scholar." + AROUND,
    "qa": "Turn the passage below into a series of questions and answers, each on lines that begin with \"Question:\" and "
          "\"Answer:\"." + AROUND}


class Wrap(Curate):
    """Adds rephrased documents, written by ``from.model`` or an endpoint."""

    styles: tuple[str, ...] = ("medium", "qa")
    """Any of easy, medium, hard, qa, and the names in ``prompts``."""
    ratio: float = 1.0
    """Rephrased documents for each original; at most as many as there are styles."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Own wordings by style, for other languages or styles; ``{text}`` stands for the passage."""
    piece: int = 1200
    """Characters of a passage at most; 1200 are about 300 tokens of English."""
    on: tuple[str, ...] = ()
    """Domains whose documents are rephrased; all where none is named."""
    domain: str = ""
    """Domain of the rephrases; default: that of the original."""
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
    max_tokens: int = 512
    """Tokens of an answer at most."""
    bench: ClassVar[Bench | None] = Bench(
        suite="knowledge", at="written", add=({"use": "wrap", "on": ["bio"], "max_tokens": 160, "at_once": 16},),
        claim="real and rephrased text, 1 : 1, make pretraining about three times as fast, with more than 2 % higher zero-shot "
        "accuracy on questions", scale="the paper's writer has 7 B parameters, not 135 M")
    example: ClassVar[dict[str, Any]] = {"styles": ["plain"], "prompts": {"plain": "{text}"}, "piece": 10, "max_tokens": 2,
                                         "at_once": 64, "domain": "new", "on": ["prose", "odd"]}

    def __post_init__(self) -> None:
        check_writing(self)
        known = PROMPTS | self.prompts
        for style in self.styles:
            if style not in known:
                raise ValueError(f"there is no style {style!r}{suggest(style, known)}; a new one needs a prompt in prompts")
        for style, prompt in self.prompts.items():
            if "{text}" not in prompt:
                raise ValueError(f"the prompt of the style {style!r} has no {{text}}, where the passage goes")
        if not self.styles or len(set(self.styles)) < len(self.styles):
            raise ValueError("styles names one style at least, and none twice")
        if not 0 < self.ratio <= len(self.styles):
            raise ValueError(f"ratio must be above 0 and at most the number of styles, {len(self.styles)}, not {self.ratio}")
        if self.piece < 1:
            raise ValueError(f"piece must be positive, not {self.piece}")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.selecting import settled
        from trainwright.corpus.sources import union
        rows = settled(documents, ctx)
        originals = sources(rows, self.on, self.name)
        with Writer(self, ctx) as writer:
            return union(rows, kept_table(self._rephrased(originals, writer, ctx), ctx))

    def _rephrased(self, originals: Sequence[dict[str, str]], writer: Writer, ctx: Context) -> Iterator[Row]:
        """A row for each document and style, as soon as all of its passages are there."""
        from trainwright.corpus.sources import document
        parts: list[str] = []
        for (one, style, left), answer in self._answers(originals, writer, ctx):
            parts.append(cleaned(answer))
            if left:
                continue
            if all(parts):
                yield document(id=f"{one['id']}#{style}", text="\n\n".join(parts), domain=self.domain or one["domain"],
                               source=self.name, metadata={"original": one["id"], "style": style})
            ctx.note(f"{self.name}/{'rephrased' if all(parts) else 'left_out'}", 1.0)
            parts = []

    def _answers(self, originals: Sequence[dict[str, str]], writer: Writer,
                 ctx: Context) -> Iterator[tuple[tuple[dict[str, str], str, int], str]]:
        """For each passage its document, the style, how many passages are left behind it, and what was written."""
        asked: deque[tuple[dict[str, str], str, int]] = deque()

        def requests() -> Iterator[Request]:
            for one in originals:
                texts = list(passages(one["text"], self.piece))
                for style in self.drawn(one["id"], ctx.seed):
                    for number, text in enumerate(texts):
                        asked.append((one, style, len(texts) - 1 - number))
                        yield Request(f"{one['id']}#{style}/{number}", filled((PROMPTS | self.prompts)[style], text=text))

        for _, answer in writer.write(requests()):
            yield asked.popleft(), answer

    def drawn(self, id: str, seed: int) -> list[str]:
        """The styles in which a document is rephrased."""
        from trainwright.corpus.tokens import uniform
        many = int(self.ratio) + (uniform(id, f"wrap/{seed}/many") < self.ratio % 1)
        first = int(uniform(id, f"wrap/{seed}/style") * len(self.styles))
        return [self.styles[(first + i) % len(self.styles)] for i in range(many)]
